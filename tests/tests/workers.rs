//! Workers: they share the load, survive the lack of descriptors, and avoid the traps that were known before.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ringway_tests::{Backend, Client, Gateway, PATIENCE, confine, eventually, settles_at};

const TWO: &str = "runtime: { workers: 2, pin: false }\n";

fn per_worker(gateway: &Gateway, name: &str) -> [f64; 2] {
    [0, 1].map(|worker| gateway.metric(&format!("{name}{{worker=\"{worker}\"}}")))
}

/// Opens a connection, uses it once and says which worker has it.
fn open(gateway: &Gateway) -> (Client, usize) {
    let before = per_worker(gateway, "gateway_worker_connections");
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 200);
    let after = per_worker(gateway, "gateway_worker_connections");
    let worker = (0..2).find(|worker| after[*worker] > before[*worker]);
    (client, worker.unwrap_or_else(|| panic!("{before:?} {after:?}")))
}

/// CPU time that the process has used, user and system.
fn cpu_time(gateway: &Gateway) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // utime and stime, fields 14 and 15, in ticks of 10 ms.
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

#[test]
fn both_workers_accept_and_serve() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!("{TWO}{}", Gateway::route_to(backend.endpoint())));
    let mut clients: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
    let accepted = per_worker(&gateway, "gateway_connections_accepted_total");
    assert!(accepted[0] > 0.0 && accepted[1] > 0.0 && accepted[0] + accepted[1] == 64.0, "{accepted:?}");
    // Of each worker its own.
    assert_eq!(backend.open(), 2);
    drop(clients);
    gateway.expect_idle();
}

#[test]
fn no_worker_holds_many_more_connections_than_the_other() {
    let gateway = Gateway::start(&format!("{TWO}routes: [{{ respond: {{ text: ok }} }}]\n"));
    let clients: Vec<_> = (0..64).map(|_| open(&gateway)).collect();
    let [a, b] = per_worker(&gateway, "gateway_worker_connections");
    assert_eq!(a + b, 64.0);
    let (most, least) = (a.max(b), a.min(b));
    // A new connection goes away where 8 more, and a quarter more, are held than elsewhere.
    assert!(most <= least + 8.0 || (most - 1.0) * 4.0 <= least * 5.0, "{most} {least}");
    let skew = gateway.metric("gateway_worker_skew_ratio");
    assert!((skew - most / 32.0).abs() < 1e-9, "{skew}");

    // Those of one worker end: nearly all new ones go there, whoever accepts them.
    let handed = || per_worker(&gateway, "gateway_connections_handed_over_total").iter().sum::<f64>();
    let (stay, go): (Vec<_>, Vec<_>) = clients.into_iter().partition(|(_, worker)| *worker == 0);
    let (held, before) = (stay.len(), handed());
    drop(go);
    settles_at([held as f64, 0.0], || per_worker(&gateway, "gateway_worker_connections"));
    let mut new: Vec<_> = (0..held - 8).map(|_| open(&gateway)).collect();
    let there = new.iter().filter(|(_, worker)| *worker == 1).count();
    assert_eq!(there, new.len(), "{held} held");
    assert!(handed() > before, "none was handed over");
    for (client, _) in &mut new {
        assert_eq!(client.get("/").status(), 200);
    }
    drop((stay, new));
    gateway.expect_idle();
}

#[test]
fn workers_are_threads_pinned_to_cores_of_their_own() {
    let cores = thread::available_parallelism().unwrap().get().min(2);
    let gateway =
        Gateway::start(&format!("runtime: {{ workers: {cores} }}\nroutes: [{{ respond: {{ text: ok }} }}]\n"));
    let mut pinned = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap() {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap();
        if name.starts_with("worker-") {
            let status = fs::read_to_string(task.join("status")).unwrap();
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
            assert!(list.parse::<usize>().is_ok(), "{name} may run on {list}");
            pinned.push(list.to_owned());
        }
    }
    pinned.sort();
    pinned.dedup();
    assert_eq!(pinned.len(), cores, "{pinned:?}");
}

#[test]
fn every_descriptor_closes_on_exec() {
    const CLOEXEC: u32 = 0o2_000_000;
    let backend = Backend::ok();
    for driver in ["io_uring", "epoll"] {
        let gateway = Gateway::start(&format!(
            "runtime: {{ workers: 2, pin: false, driver: {driver} }}\n{}",
            Gateway::route_to(backend.endpoint())
        ));
        let mut clients: Vec<_> = (0..32).map(|_| gateway.connect()).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
        let mut sockets = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap() {
            let (entry, process) = (entry.unwrap(), Path::new("/proc").join(gateway.pid().to_string()));
            let number = entry.file_name().into_string().unwrap();
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let Ok(info) = fs::read_to_string(process.join("fdinfo").join(&number)) else { continue };
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let flags = u32::from_str_radix(flags, 8).unwrap();
            // Its own, not what it may have inherited.
            let target = target.to_string_lossy();
            if target.starts_with("socket:") || target.starts_with("anon_inode:") || target.ends_with("access.log") {
                assert!(flags & CLOEXEC != 0, "{driver}: {number} is {target}");
            }
            sockets += usize::from(target.starts_with("socket:"));
        }
        assert!(sockets >= 32 + 2 + 3, "{sockets}");
    }
}

#[test]
fn the_lack_of_descriptors_is_survived_without_spinning() {
    for driver in ["io_uring", "epoll"] {
        let yaml = format!(
            "runtime: {{ workers: 1, pin: false, driver: {driver} }}\nroutes: [{{ respond: {{ text: ok }} }}]\n"
        );
        let gateway = Gateway::start_with(&yaml, |command| confine::limit_descriptors(command, 120));
        // All connect, since the kernel accepts them; the last ones find no descriptor in the gateway.
        let mut clients: Vec<_> = (0..130).map(|_| gateway.connect()).collect();
        eventually(PATIENCE, || gateway.open_fds() >= 119);
        let _admin = TcpStream::connect(gateway.admin_address()).unwrap();
        thread::sleep(Duration::from_millis(300));
        let before = cpu_time(&gateway);
        thread::sleep(Duration::from_secs(2));
        let used = cpu_time(&gateway) - before;
        assert!(used < Duration::from_millis(200), "{driver}: {used:?} of CPU time in 2 s");
        // Those that have one are served meanwhile.
        for client in &mut clients[..50] {
            assert_eq!(client.get("/").status(), 200);
        }
        let mut waiting = clients.pop().unwrap();
        waiting.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        assert!(waiting.stays_silent(Duration::from_millis(200)));
        clients.clear();
        assert_eq!(waiting.read_response().status(), 200);
        assert_eq!(gateway.get("/").status(), 200);
        assert!(gateway.metric("gateway_accept_errors_total") >= 1.0);
        let told = gateway.stderr().lines().filter(|line| line.contains("admin listener: Too many open files")).count();
        assert!((1..10).contains(&told), "{}", gateway.stderr());
        drop(waiting);
        gateway.expect_idle();
    }
}

#[test]
fn an_idle_gateway_rests() {
    let backend = Backend::ok();
    for driver in ["io_uring", "epoll"] {
        let gateway = Gateway::start(&format!(
            "runtime: {{ workers: 2, pin: false, driver: {driver} }}\n{}",
            Gateway::route_to(backend.endpoint())
        ));
        let mut clients: Vec<_> = (0..20).map(|_| gateway.connect()).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
        let before = cpu_time(&gateway);
        thread::sleep(Duration::from_secs(2));
        let used = cpu_time(&gateway) - before;
        assert!(used < Duration::from_millis(100), "{driver}: {used:?} of CPU time in 2 s");
    }
}

#[test]
fn descriptors_do_not_leak() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!("{TWO}{}", Gateway::route_to(backend.endpoint())));
    let round = || {
        let mut clients: Vec<_> = (0..50).map(|_| gateway.connect()).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            match index % 5 {
                0 => assert_eq!(client.get("/").status(), 200),
                1 => assert_eq!(client.send("GET / HTTP/1.0\r\n\r\n").read_response().status(), 200),
                2 => client.reset_on_close(),
                3 => drop(client.send("GET / HTTP/1.1\r\nHo")),
                _ => {}
            }
        }
        drop(clients);
        gateway.expect_idle();
    };
    round();
    // The admin listener's connections come and go.
    let before = gateway.open_fds();
    (0..5).for_each(|_| round());
    eventually(PATIENCE, || gateway.open_fds() <= before + 2);
}

#[test]
fn everything_works_on_epoll_too() {
    let backend = Backend::echo();
    let gateway = Gateway::start(&format!(
        "runtime: {{ workers: 2, pin: false, driver: epoll }}\n{}",
        Gateway::route_to(backend.endpoint())
    ));
    let mut client = gateway.connect();
    // Chunked both ways would be the same; here a chunked request and an answer with a length.
    let chunked =
        "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    assert_eq!(client.ask(chunked).text(), "abcdefg");
    // Pipelined.
    client.send("GET /1 HTTP/1.1\r\nHost: test\r\n\r\nPOST /2 HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(client.read_response().text(), "");
    assert_eq!(client.read_response().text(), "x");
    // A body that no buffer holds, both ways.
    let body = vec![b'z'; 3 << 20];
    let head = format!("POST /big HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut big = Gateway::start(&format!(
        "runtime: {{ workers: 1, pin: false, driver: epoll }}\n{}",
        Gateway::route_to(backend.endpoint()).replace("service: app }", "service: app, limits: { body: off } }")
    ));
    let mut client = big.connect();
    client.send(head).send(&body);
    assert!(client.read_response().body == body);
    // Errors and deadlines.
    assert_eq!(big.connect().send("BAD\r\n\r\n").read_response().status(), 400);
    assert_eq!(big.connect().get("/").status(), 200);
    big.terminate();
    client.expect_closed();
    assert!(big.wait_exit(PATIENCE).success());
}
