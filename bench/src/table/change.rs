//! Changing a table that is installed: from the new `ServiceTable` to the stores in the kernel's maps.

use std::time::Instant;

use anyhow::ensure;
use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::dataplane::bpf::{self, BpfDataplane};
use lb_controller::dataplane::load::Sizes;
use lb_controller::dataplane::{Capacity, Contents, Dataplane as _};
use lb_controller::model::installed::Installed;
use lb_controller::model::op::Op;

use super::objects::{service, view, with_replaced_pod};
use super::wanted;
use crate::Length;
use crate::pin_dir::PinDir;
use crate::report::Row;
use crate::rounds::Samples;

const SIZE: u32 = 65_537;
const SLOTS: u16 = 1000;
/// More than one slot per fifty rows, so the table gets another size.
const GROWN: u16 = 1311;
const GROWN_SIZE: u32 = 262_139;

/// Maps in the kernel and what is known to be in them.
struct Node {
    maps: BpfDataplane,
    installed: Installed,
}

impl Node {
    fn open(dir: &PinDir) -> anyhow::Result<Self> {
        let sizes = Sizes {
            flows: 1024,
            ..Sizes::default()
        };
        let (mut maps, _programs) = bpf::open(&dir.path().join("node"), &sizes)?;
        let contents: Contents = maps.read()?;
        let capacity: Capacity = maps.capacity();
        let installed = Installed::from_contents(&contents, capacity, view());
        Ok(Self { maps, installed })
    }

    /// Brings the maps in line with a table; answers what that took.
    fn apply(&mut self, table: &ServiceTableSpec) -> anyhow::Result<Vec<Op>> {
        let service = self.installed.decode(table)?;
        let ops = self.installed.plan(&service)?;
        for op in &ops {
            self.maps.apply(op)?;
        }
        Ok(ops)
    }

    fn record(&mut self, ops: &[Op]) {
        for op in ops {
            self.installed.record(op);
        }
    }

    /// Frees what nothing names any more.
    fn collect(&mut self, table: &ServiceTableSpec) -> anyhow::Result<()> {
        let service = self.installed.decode(table)?;
        let ops = self.installed.collect([&service]);
        for op in &ops {
            self.maps.apply(op)?;
        }
        self.record(&ops);
        Ok(())
    }
}

pub(super) fn rows(length: Length, only: &str) -> anyhow::Result<Vec<Row>> {
    let name = format!("m={SIZE},n={SLOTS}");
    let [change, decoded, resize] =
        ["change", "change-decoded", "resize"].map(|kind| format!("table/{kind}/{name}"));
    if ![&change, &decoded, &resize]
        .into_iter()
        .any(|case| wanted(case, only))
    {
        return Ok(Vec::new());
    }
    let (changes, resizes) = match length {
        Length::Quick => (50, 3),
        Length::Full => (500, 20),
    };
    let dir = PinDir::make()?;
    let mut node = Node::open(&dir)?;
    let (mut whole, mut late) = (Samples::default(), Samples::default());
    let before = service(1, 0, SLOTS, SIZE);
    for round in 0..changes {
        settle(&mut node, &before)?;
        let after = with_replaced_pod(before.clone(), 500, 10_000 + round);
        let start = Instant::now();
        let ops = node.apply(&after)?;
        whole.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(
            ops.iter().any(|op| matches!(op, Op::Slot { .. })) && ops.len() == 3,
            "a replaced pod took {} operations, not a backend, a set and a slot",
            ops.len()
        );
        node.record(&ops);
        // The same again, from the form that the agent compares with what is installed.
        settle(&mut node, &before)?;
        let after = with_replaced_pod(before.clone(), 500, 20_000 + round);
        let after = node.installed.decode(&after)?;
        let start = Instant::now();
        let ops = node.installed.plan(&after)?;
        for op in &ops {
            node.maps.apply(op)?;
        }
        late.push(start.elapsed().as_secs_f64() * 1e3);
        node.record(&ops);
    }
    let mut grown = Samples::default();
    let after = service(1, 0, GROWN, GROWN_SIZE);
    for _ in 0..resizes {
        settle(&mut node, &before)?;
        let start = Instant::now();
        let ops = node.apply(&after)?;
        grown.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(
            ops.iter().any(|op| matches!(op, Op::Rows { .. })),
            "a resize wrote no rows"
        );
        node.record(&ops);
        node.collect(&after)?;
    }
    Ok(vec![
        Row::new(&change, "ms", &whole),
        Row::new(&decoded, "ms", &late),
        Row::new(&resize, "ms", &grown),
    ])
}

/// Back to the table before, with everything else freed.
fn settle(node: &mut Node, before: &ServiceTableSpec) -> anyhow::Result<()> {
    let ops = node.apply(before)?;
    node.record(&ops);
    node.collect(before)
}
