//! The loop at work on real sockets, once on io_uring (sleeping, and looking before it sleeps) and once on epoll.

use std::cell::Cell;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringway_io::{EventLoop, LoopCounts, Sock, Ticker, spawn, yield_now};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on each kind of loop.
fn on_each_loop<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for (name, looped) in [
        ("io_uring", EventLoop::io_uring(256).expect("io_uring")),
        ("busy", EventLoop::io_uring(256).expect("io_uring").busy_poll(Some(Duration::from_millis(1)))),
        ("epoll", EventLoop::epoll(256).expect("epoll")),
    ] {
        eprintln!("on {name}");
        let mut looped = looped;
        looped.block_on(test());
    }
}

/// A connection: this end on the loop, the other one blocking.
fn pair() -> (Sock, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    other.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let (here, _) = listener.accept().expect("a connection");
    here.set_nonblocking(true).expect("non-blocking");
    here.set_nodelay(true).expect("no delay");
    other.set_nodelay(true).expect("no delay");
    (Sock::new(OwnedFd::from(here)).expect("a socket"), other)
}

/// Everything until the end, in pieces of at most `piece` bytes.
async fn read_all(sock: &Sock, piece: usize) -> std::io::Result<Vec<u8>> {
    let (mut all, mut room) = (Vec::new(), vec![0; piece]);
    loop {
        match sock.recv(&mut room)? {
            Some(0) => return Ok(all),
            Some(received) => all.extend_from_slice(&room[..received]),
            None => sock.readable().await,
        }
    }
}

async fn write_all(sock: &Sock, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let sent = sock.send(bytes, false).expect("a peer");
        bytes = &bytes[sent..];
        if !bytes.is_empty() {
            sock.writable().await;
        }
    }
}

#[test]
fn what_does_not_fit_a_read_is_not_waited_for() {
    on_each_loop(|| async {
        let (sock, mut other) = pair();
        other.write_all(&[7; 10_000]).unwrap();
        let mut room = [0; 4096];
        let mut seen = 0;
        // Always a wait before a read: the kernel tells of the bytes once.
        while seen < 10_000 {
            sock.readable().await;
            seen += sock.recv(&mut room).unwrap().unwrap_or(0);
        }
    });
}

#[test]
fn an_end_is_seen_behind_the_data() {
    on_each_loop(|| async {
        for (early, piece) in [(true, 3), (true, 4096), (false, 5), (false, 4096)] {
            let (sock, mut other) = pair();
            if !early {
                // The wait begins before anything comes.
                assert!(matches!(sock.recv(&mut [0; 8]), Ok(None)));
            }
            other.write_all(b"hello").unwrap();
            other.shutdown(Shutdown::Write).unwrap();
            sock.readable().await;
            assert_eq!(read_all(&sock, piece).await.unwrap(), b"hello");
            // It stays so.
            sock.readable().await;
            assert!(matches!(sock.recv(&mut [0; 8]), Ok(Some(0))));
        }
    });
}

#[test]
fn connections_that_wait_are_accepted_one_by_one() {
    on_each_loop(|| async {
        let listener = ringway_io::bind("127.0.0.1:0".parse().unwrap(), 16, 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let sock = Sock::new(OwnedFd::from(listener)).unwrap();
        assert!(sock.accept().unwrap().is_none());
        let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        for client in &clients {
            // The kernel tells of them once.
            sock.readable().await;
            let (_, peer) = sock.accept().unwrap().expect("a connection");
            assert_eq!(peer, Some(client.local_addr().unwrap()));
        }
        assert!(sock.accept().unwrap().is_none());
        sock.shutdown(rustix::net::Shutdown::Read);
        sock.readable().await;
        assert!(sock.accept().unwrap().is_none());
    });
}

#[test]
fn a_reset_ends_the_wait() {
    on_each_loop(|| async {
        let (sock, other) = pair();
        let reset = async {
            sock.readable().await;
            sock.recv(&mut [0; 8])
        };
        socket2::SockRef::from(&other).set_linger(Some(Duration::ZERO)).unwrap();
        let thread = std::thread::spawn(move || drop(other));
        assert!(reset.await.is_err());
        assert!(sock.is_reset() || sock.recv(&mut [0; 8]).is_ok());
        thread.join().unwrap();
    });
}

#[test]
fn a_shutdown_of_this_side_ends_the_wait() {
    on_each_loop(|| async {
        let (sock, _other) = pair();
        let waits = sock.clone();
        let ended = Rc::new(Cell::new(false));
        let flag = Rc::clone(&ended);
        spawn(async move {
            waits.readable().await;
            flag.set(true);
        });
        let ticker = Ticker::every(Duration::from_millis(5)).unwrap();
        ticker.tick().await;
        assert!(!ended.get());
        sock.shutdown(rustix::net::Shutdown::Read);
        let begun = Instant::now();
        while !ended.get() {
            assert!(begun.elapsed() < PATIENCE);
            ticker.tick().await;
        }
    });
}

#[test]
fn a_socket_that_waits_closes_when_it_is_dropped() {
    on_each_loop(|| async {
        let (sock, mut other) = pair();
        let mut wait = Box::pin(async move { sock.readable().await });
        let ticker = Ticker::every(Duration::from_millis(1)).unwrap();
        // The wait is armed, then abandoned together with its socket.
        std::future::poll_fn(|cx| {
            assert!(wait.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        ticker.tick().await;
        drop(wait);
        ticker.tick().await;
        ticker.tick().await;
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 0);
    });
}

#[test]
fn a_socket_closes_however_much_still_comes() {
    on_each_loop(|| async {
        for _ in 0..10 {
            let (sock, mut other) = pair();
            let sender = std::thread::spawn(move || while other.write_all(b"and so on").is_ok() {});
            let mut room = [0; 64];
            for _ in 0..20 {
                sock.readable().await;
                let _ = sock.recv(&mut room);
            }
            drop(sock);
            let ticker = Ticker::every(Duration::from_millis(1)).unwrap();
            let begun = Instant::now();
            while !sender.is_finished() {
                assert!(begun.elapsed() < PATIENCE);
                ticker.tick().await;
            }
            sender.join().unwrap();
        }
    });
}

#[test]
fn a_socket_in_the_place_of_another_hears_only_its_own() {
    on_each_loop(|| async {
        let mut room = [0; 8];
        for round in 0..100u8 {
            let (old, mut old_other) = pair();
            old_other.write_all(b"x").unwrap();
            old.readable().await;
            assert_eq!(old.recv(&mut room).unwrap(), Some(1));
            // An event of the old one is on its way when it goes.
            old_other.write_all(b"y").unwrap();
            drop(old);
            let (new, mut new_other) = pair();
            assert!(matches!(new.recv(&mut room), Ok(None)));
            new_other.write_all(&[round]).unwrap();
            while new.recv(&mut room).unwrap().is_none() {
                new.readable().await;
            }
            assert_eq!(room[0], round);
        }
    });
}

#[test]
fn writing_waits_for_room() {
    on_each_loop(|| async {
        let (sock, mut other) = pair();
        let bytes: Vec<u8> = (0..8 << 20).map(|index| (index % 251) as u8).collect();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            other.read_to_end(&mut all).map(|_| all)
        });
        write_all(&sock, &bytes).await;
        sock.shutdown(rustix::net::Shutdown::Write);
        drop(sock);
        // The socket closes when the loop goes round.
        Ticker::every(Duration::from_millis(1)).unwrap().tick().await;
        assert!(reader.join().unwrap().unwrap() == bytes);
    });
}

/// A peer that has stopped sending may still read: to wait for it is to wait, not to ask again and again.
#[test]
fn writing_to_a_peer_that_has_stopped_sending_lets_others_run() {
    on_each_loop(|| async {
        let (sock, mut other) = pair();
        // The wait for reading is armed, so that the loop hears of the end.
        let waits = sock.clone();
        spawn(async move { waits.readable().await });
        other.shutdown(Shutdown::Write).unwrap();
        let bytes = vec![7; 32 << 20];
        let length = bytes.len();
        let written = Rc::new(Cell::new(false));
        let (writer, flag) = (sock.clone(), Rc::clone(&written));
        spawn(async move {
            write_all(&writer, &bytes).await;
            flag.set(true);
        });
        let before = LoopCounts::of_this_thread();
        let ticker = Ticker::every(Duration::from_millis(5)).unwrap();
        for _ in 0..20 {
            ticker.tick().await;
        }
        let turns = LoopCounts::of_this_thread().turns - before.turns;
        assert!(turns < 1000, "{turns} turns in 20 ticks");
        assert!(!written.get());
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; length];
            other.read_exact(&mut all).map(|()| all.iter().all(|byte| *byte == 7))
        });
        let begun = Instant::now();
        while !written.get() {
            assert!(begun.elapsed() < PATIENCE);
            ticker.tick().await;
        }
        assert!(reader.join().unwrap().unwrap());
    });
}

#[test]
fn a_socket_dropped_at_the_very_end_closes_too() {
    let mut looped = EventLoop::io_uring(256).unwrap();
    let mut other = looped.block_on(async {
        let (sock, other) = pair();
        let mut wait = Box::pin(async { sock.readable().await });
        std::future::poll_fn(|cx| {
            assert!(wait.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        // The kernel has the poll.
        Ticker::every(Duration::from_millis(1)).unwrap().tick().await;
        other
    });
    assert_eq!(other.read(&mut [0; 8]).unwrap(), 0);
    drop(looped);
}

#[test]
fn who_gives_way_lets_events_come() {
    on_each_loop(|| async {
        let ticked = Rc::new(Cell::new(false));
        let seen = Rc::clone(&ticked);
        let given = Rc::new(Cell::new(0));
        let count = Rc::clone(&given);
        spawn(async move {
            let begun = Instant::now();
            while !seen.get() && begun.elapsed() < PATIENCE {
                count.set(count.get() + 1);
                yield_now().await;
            }
        });
        let begun = Instant::now();
        Ticker::every(Duration::from_millis(5)).unwrap().tick().await;
        ticked.set(true);
        assert!(begun.elapsed() < PATIENCE);
        assert!(given.get() > 1);
    });
}

#[test]
fn many_connections_echo_messages_of_all_sizes() {
    const CONNECTIONS: usize = 64;
    on_each_loop(|| async {
        let ended = Rc::new(Cell::new(0));
        let mut threads = Vec::new();
        for seed in 0..CONNECTIONS {
            let (sock, mut other) = pair();
            let ended = Rc::clone(&ended);
            spawn(async move {
                let mut room = vec![0; 1000 + seed];
                loop {
                    sock.readable().await;
                    match sock.recv(&mut room) {
                        Ok(Some(0)) | Err(_) => break,
                        Ok(Some(received)) => write_all(&sock, &room[..received]).await,
                        Ok(None) => {}
                    }
                }
                ended.set(ended.get() + 1);
            });
            threads.push(std::thread::spawn(move || {
                for round in 1..100 {
                    let length = 1 + (seed * 7919 + round * round * 131) % 9000;
                    let message: Vec<u8> = (0..length).map(|index| (index + round) as u8).collect();
                    other.write_all(&message).unwrap();
                    let mut echo = vec![0; length];
                    other.read_exact(&mut echo).unwrap();
                    assert!(echo == message, "connection {seed}, round {round}");
                }
            }));
        }
        let ticker = Ticker::every(Duration::from_millis(5)).unwrap();
        let begun = Instant::now();
        while ended.get() < CONNECTIONS {
            assert!(begun.elapsed() < PATIENCE, "{} of {CONNECTIONS} have ended", ended.get());
            ticker.tick().await;
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_ticker_ticks_in_time() {
    on_each_loop(|| async {
        let begun = Instant::now();
        let every = Ticker::every(Duration::from_millis(10)).unwrap();
        for _ in 0..5 {
            every.tick().await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(45));
        let once = Ticker::idle().unwrap();
        let begun = Instant::now();
        once.set_once(Duration::from_millis(3)).unwrap();
        once.tick().await;
        assert!((Duration::from_millis(3)..PATIENCE).contains(&begun.elapsed()));
    });
}

#[test]
fn a_steady_conversation_costs_no_ring_operations() {
    let mut looped = EventLoop::io_uring(256).unwrap().busy_poll(Some(Duration::from_millis(1)));
    looped.block_on(async {
        let (sock, mut other) = pair();
        let echo = std::thread::spawn(move || {
            let mut room = [0; 1];
            while other.read_exact(&mut room).is_ok() {
                other.write_all(&room).unwrap();
            }
        });
        let round = async || {
            write_all(&sock, b"x").await;
            while sock.recv(&mut [0; 8]).unwrap().is_none() {
                sock.readable().await;
            }
        };
        for _ in 0..1000 {
            round().await;
        }
        let before = LoopCounts::of_this_thread();
        for _ in 0..1000 {
            round().await;
        }
        let after = LoopCounts::of_this_thread();
        assert_eq!(after.ring_ops, before.ring_ops);
        assert!(after.turns > before.turns);
        sock.shutdown(rustix::net::Shutdown::Both);
        echo.join().unwrap();
    });
}
