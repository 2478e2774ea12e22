//! Programs and maps in the kernel, and single timed runs of them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_controller::dataplane::load;
use lb_ebpf::abi::{self, DropReason, Stat};

use super::MANY;
use super::frames::step_key;
use super::script::Script;
use super::tables::Services;
use crate::rounds;

static DRIVER: &[u8] = aya::include_bytes_aligned!(env!("DRIVER_OBJECT"));

/// Which kernel entry a program has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Hook {
    Xdp,
    Tc,
}

/// Bowline's programs with maps of their own.
pub(super) struct Instance {
    pub(super) ebpf: Ebpf,
}

impl Instance {
    /// Loads both programs. `flows` is the size of the flow table of each family.
    pub(super) fn load(flows: u32) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(abi::map::FLOWS4, flows)
            .map_max_entries(abi::map::FLOWS6, flows)
            .load(load::OBJECT)
            .context("load Bowline's programs (this needs root)")?;
        load_all(&mut ebpf)?;
        Ok(Self { ebpf })
    }

    /// What runs at a hook.
    pub(super) fn program(&self, hook: Hook) -> anyhow::Result<ProgramFd> {
        let name = match hook {
            Hook::Xdp => load::XDP,
            Hook::Tc => load::EGRESS,
        };
        program(&self.ebpf, name)
    }

    /// Packets of all services so far.
    pub(super) fn forwarded(&self) -> anyhow::Result<u64> {
        let name = abi::map::SERVICES_COUNT;
        let map = self.ebpf.map(name).context(name)?;
        let map: PerCpuArray<_, abi::Count> = PerCpuArray::try_from(map)?;
        let mut sum = 0;
        for id in 0..MANY.count {
            sum += map
                .get(&id, 0)?
                .iter()
                .map(|count| count.packets)
                .sum::<u64>();
        }
        Ok(sum)
    }

    /// Packets counted under an event so far.
    pub(super) fn stat(&self, stat: Stat) -> anyhow::Result<u64> {
        self.per_cpu(abi::map::STATS, stat as u32)
    }

    /// Packets dropped so far, and why the last of them was, by the highest number of a reason.
    pub(super) fn drops(&self) -> anyhow::Result<Vec<(DropReason, u64)>> {
        DropReason::ALL
            .iter()
            .map(|&reason| Ok((reason, self.per_cpu(abi::map::DROPS, reason as u32)?)))
            .collect()
    }

    fn per_cpu(&self, map: &str, index: u32) -> anyhow::Result<u64> {
        let map = self
            .ebpf
            .map(map)
            .with_context(|| format!("no map {map}"))?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Ok(map.get(&index, 0)?.iter().sum())
    }
}

/// The driver programs, see `lb-ebpf/src/bin/driver.rs`.
pub(super) struct Driver {
    ebpf: Ebpf,
    script: Array<MapData, [u8; Script::LEN]>,
    xdp_targets: ProgramArray<MapData>,
    tc_targets: ProgramArray<MapData>,
}

/// What a timed run, or one for proof, is of.
pub(super) struct Run<'a> {
    pub(super) hook: Hook,
    pub(super) packet: &'a [u8],
    pub(super) repeat: u32,
}

/// What came of it.
pub(super) struct Done {
    /// Per packet.
    pub(super) ns: f64,
    pub(super) verdict: u32,
    /// The last packet as the program left it.
    pub(super) packet: Vec<u8>,
}

impl Driver {
    /// Loads the driver.
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load(DRIVER)
            .context("load the driver programs (this needs root)")?;
        load_all(&mut ebpf)?;
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("no map {name}"))
        };
        Ok(Self {
            script: Array::try_from(take("script")?)?,
            xdp_targets: ProgramArray::try_from(take("xdp_targets")?)?,
            tc_targets: ProgramArray::try_from(take("tc_targets")?)?,
            ebpf,
        })
    }

    /// Fills the maps of the single steps as those of `services` Services are.
    pub(super) fn fill_steps(&mut self, services: Services) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut("steps_hash").context("steps_hash")?;
        let mut hash: HashMap<_, [u32; 2], [u32; 13]> = HashMap::try_from(map)?;
        let keys: Vec<[u32; 2]> = (0..services.count).map(step_key).collect();
        for key in &keys {
            hash.insert(key, [1; 13], 0)?;
        }
        let map = self
            .ebpf
            .map_mut("steps_probing")
            .context("steps_probing")?;
        let mut probing: Array<_, [u32; 16]> = Array::try_from(map)?;
        let mut taken = vec![false; probing.len() as usize];
        for [vip, ports] in keys {
            let word = u64::from(vip) << 32 | u64::from(ports);
            let mut at = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49) as usize;
            while taken[at % taken.len()] {
                at += 1;
            }
            at %= taken.len();
            taken[at] = true;
            let mut entry = [1; 16];
            entry[..2].copy_from_slice(&[vip, ports]);
            probing.set(at as u32, entry, 0)?;
        }
        let map = self.ebpf.map_mut("steps_array").context("steps_array")?;
        let mut array: Array<_, [u64; 16]> = Array::try_from(map)?;
        for index in 0..array.len() {
            array.set(index, [1; 16], 0)?;
        }
        Ok(())
    }

    /// One of the driver's own programs.
    pub(super) fn program(&self, name: &str) -> anyhow::Result<ProgramFd> {
        program(&self.ebpf, name)
    }

    /// Puts programs behind the driver: the first is called by it, the second by the first (see `lru`).
    pub(super) fn set_targets(&mut self, hook: Hook, targets: &[&ProgramFd]) -> anyhow::Result<()> {
        let array = match hook {
            Hook::Xdp => &mut self.xdp_targets,
            Hook::Tc => &mut self.tc_targets,
        };
        for (index, target) in (0..).zip(targets) {
            array.set(index, target, 0)?;
        }
        Ok(())
    }

    /// Sets the packets to come.
    pub(super) fn set_script(&mut self, script: &Script) -> anyhow::Result<()> {
        Ok(self.script.set(0, script.bytes(), 0)?)
    }

    /// Runs driver and target.
    pub(super) fn run(&self, run: &Run<'_>) -> anyhow::Result<Done> {
        match run.hook {
            Hook::Xdp => self.test_run("drive_xdp", run),
            Hook::Tc => self.test_run("drive_tc", run),
        }
    }

    /// Runs one of the driver's programs by itself.
    pub(super) fn test_run(&self, name: &str, run: &Run<'_>) -> anyhow::Result<Done> {
        let mut out = vec![0; 2048];
        let options = || TestRunOptions {
            data_in: Some(run.packet),
            repeat: run.repeat,
            ..TestRunOptions::default()
        };
        let program = self.ebpf.program(name).context("no such program")?;
        let (took, result) = match run.hook {
            Hook::Xdp => {
                let program: &Xdp = program.try_into()?;
                let options = TestRunOptions {
                    data_out: Some(&mut out),
                    ..options()
                };
                rounds::time(|| program.test_run(options))?
            }
            Hook::Tc => {
                let program: &SchedClassifier = program.try_into()?;
                let options = TestRunOptions {
                    data_out: Some(&mut out),
                    ..options()
                };
                rounds::time(|| program.test_run(options))?
            }
        };
        let TestRunResult {
            return_value,
            data_size_out,
            ..
        } = result?;
        ensure!(
            (data_size_out as usize) <= out.len(),
            "a packet of {data_size_out} bytes came out"
        );
        out.truncate(data_size_out as usize);
        Ok(Done {
            ns: per_packet(took, run.repeat),
            verdict: return_value,
            packet: out,
        })
    }
}

fn per_packet(took: Duration, repeat: u32) -> f64 {
    took.as_secs_f64() * 1e9 / f64::from(repeat.max(1))
}

fn load_all(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            aya::programs::Program::Xdp(program) => program.load(),
            aya::programs::Program::SchedClassifier(program) => program.load(),
            _ => continue,
        };
        loaded.with_context(|| format!("load program {name}"))?;
    }
    Ok(())
}

fn program(ebpf: &Ebpf, name: &str) -> anyhow::Result<ProgramFd> {
    let program = ebpf
        .program(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.fd()?.try_clone()?)
}
