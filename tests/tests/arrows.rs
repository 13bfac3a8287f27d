//! The crates depend on each other in one direction only (docs/ARCHITECTURE.md).

use std::fs;
use std::path::Path;

/// The workspace's own crates that a manifest of `engine/` (or one beside it) names among its dependencies, tests left
/// out.
fn own_dependencies(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine").join(name).join("Cargo.toml");
    let manifest = fs::read_to_string(path).expect("a manifest");
    let section = manifest.split("[dependencies]").nth(1).expect("dependencies");
    let section = section.split("\n[").next().expect("a section");
    let names = section.lines().filter_map(|line| line.strip_prefix("ringway-")?.split(['.', ' ', '=']).next());
    names.map(str::to_owned).collect()
}

#[test]
fn dependencies_run_one_way() {
    assert_eq!(own_dependencies("core"), Vec::<String>::new());
    assert_eq!(own_dependencies("config"), ["core"]);
    assert_eq!(own_dependencies("io"), Vec::<String>::new());
    assert_eq!(own_dependencies("data"), ["core", "config", "io"]);
    assert_eq!(own_dependencies("control"), ["core", "config"]);
    assert_eq!(own_dependencies("ringway"), ["core", "config", "data", "control"]);
    assert_eq!(own_dependencies("../loadtest"), ["core", "io"]);
}

#[test]
fn only_the_event_loop_knows_monoio() {
    for name in ["core", "config", "data", "control", "ringway"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine").join(name).join("Cargo.toml");
        assert!(!fs::read_to_string(path).expect("a manifest").contains("monoio"), "{name}");
    }
}
