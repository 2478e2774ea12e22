//! `cargo xtask image`: archives of container images with what was built, without a container engine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rig::image::{Files, Start, write};

use crate::{lab, process, setup};

/// Arguments of the task.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack what a debug build has left, without building; for a quick try
    #[arg(long)]
    debug: bool,
}

/// Image of agent and manager.
const BOWLINE: &str = "localhost/bowline:dev";
/// Image of a server that says who it is: `lbctl lab-server`.
const ECHO: &str = "localhost/bowline-echo:dev";

/// Image of the routing daemon: Debian's.
const BIRD: &str = "localhost/bowline-bird:dev";

/// The archives that were written.
pub(crate) struct Images {
    pub(crate) bowline: PathBuf,
    pub(crate) echo: PathBuf,
    pub(crate) bird: PathBuf,
}

/// The task.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Said already; packing fails with its name.
    setup::ensure(&[setup::BIRD]);
    let profile = if args.debug {
        "debug"
    } else {
        lab::build()?;
        "release"
    };
    let images = pack(profile)?;
    println!("{BOWLINE}: {}", images.bowline.display());
    println!("{ECHO}: {}", images.echo.display());
    println!("{BIRD}: {}", images.bird.display());
    Ok(ExitCode::SUCCESS)
}

/// Packs what is built.
pub(crate) fn pack(profile: &str) -> anyhow::Result<Images> {
    let target = process::target_dir()?;
    pack_from(&target.join(profile), &target.join("images"))
}

/// Packs the programs of a directory into archives of another one.
pub(crate) fn pack_from(programs: &Path, out: &Path) -> anyhow::Result<Images> {
    let built = |program: &str| programs.join(program);
    let images = Images {
        bowline: out.join("bowline.tar"),
        echo: out.join("bowline-echo.tar"),
        bird: out.join("bowline-bird.tar"),
    };
    let lbctl = built("lbctl");

    let mut files = base();
    files.program("/usr/bin/lb-controller", &built("lb-controller"))?;
    files.program("/usr/bin/lbctl", &lbctl)?;
    // The installed name makes it a plugin of kubectl.
    files.link("/usr/bin/kubectl-lb", "lbctl");
    let start = start(&["/usr/bin/lb-controller"]);
    write(&images.bowline, BOWLINE, &files, &start)?;

    let mut files = base();
    files.program("/usr/bin/lbctl", &lbctl)?;
    write(
        &images.echo,
        ECHO,
        &files,
        &self::start(&["/usr/bin/lbctl", "lab-server"]),
    )?;

    let mut files = base();
    for program in ["/usr/sbin/bird", "/usr/sbin/birdcl"] {
        files.program(program, Path::new(program))?;
    }
    write(
        &images.bird,
        BIRD,
        &files,
        &self::start(&["/usr/sbin/bird"]),
    )?;
    Ok(images)
}

fn base() -> Files {
    let mut files = Files::default();
    files.file(
        "/etc/passwd",
        "root:x:0:0:root:/:/sbin/nologin\nbowline:x:65532:65532:bowline:/:/sbin/nologin\n",
        0o644,
    );
    files.directory(Path::new("/tmp"), 0o1777);
    files
}

fn start(entrypoint: &[&str]) -> Start {
    Start {
        entrypoint: entrypoint.iter().map(ToString::to_string).collect(),
        ..Start::default()
    }
}
