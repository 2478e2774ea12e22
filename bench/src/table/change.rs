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
            is_one_pod(&ops),
            "a replaced pod took {} operations, not a backend, and a set and a slot for its own slot and for the few that it \
             stands in for",
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

/// Slots that a pod stands in for, or stood in for, are few: as many as fall between two neighbours among a thousand on a ring.
const STOOD_IN_FOR_MAX: usize = 32;

/// A backend, then as many sets as slots: those of the pod's own slot, and of those that it stands in for instead of its
/// predecessor.
fn is_one_pod(ops: &[Op]) -> bool {
    let count = |is: fn(&Op) -> bool| ops.iter().filter(|op| is(op)).count();
    let backends = count(|op| matches!(op, Op::Backend { .. }));
    let sets = count(|op| matches!(op, Op::Set { .. }));
    let slots = count(|op| matches!(op, Op::Slot { .. }));
    (backends, sets) == (1, slots)
        && (1..=STOOD_IN_FOR_MAX).contains(&slots)
        && ops.len() == 1 + 2 * slots
}
