//! What the proxy promises, before a server of a few lines: it answers each byte with the number of bytes so far.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ergon_test_servers::Proxy;

fn counter() -> (SocketAddr, Arc<AtomicU8>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU8::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let counted = Arc::clone(&counted);
            thread::spawn(move || {
                let mut connection = connection.unwrap();
                let mut byte = [0];
                while connection.read_exact(&mut byte).is_ok() {
                    byte[0] = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    let _ = connection.write_all(&byte);
                }
            });
        }
    });
    (address, count)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let connection = TcpStream::connect(proxy.address()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    connection
}

fn ask(mut connection: &TcpStream) -> Option<u8> {
    let mut byte = [0];
    connection.write_all(&byte).ok()?;
    connection.read_exact(&mut byte).ok()?;
    Some(byte[0])
}

#[test]
fn everything_goes_through() {
    let (address, _) = counter();
    let proxy = Proxy::to(address);
    assert_eq!(proxy.url(&format!("redis://{address}/0")), format!("redis://{}/0", proxy.address()));
    let (one, two) = (connect(&proxy), connect(&proxy));
    assert_eq!([ask(&one), ask(&two), ask(&one)], [Some(1), Some(2), Some(3)]);
    assert_eq!(proxy.connections(), 2);
    drop(proxy);
    assert_eq!([ask(&one), ask(&two)], [None, None]);
}

#[test]
fn connections_are_cut_and_refused() {
    let (address, _) = counter();
    let proxy = Proxy::to(address);
    let open = connect(&proxy);
    assert_eq!(ask(&open), Some(1));
    proxy.refuse(true);
    assert_eq!(ask(&connect(&proxy)), None, "a new one is refused");
    assert_eq!(ask(&open), Some(2), "the open one stays");
    proxy.cut();
    assert_eq!(ask(&open), None);
    proxy.refuse(false);
    assert_eq!(ask(&connect(&proxy)), Some(3));
}

#[test]
fn answers_are_lost_after_the_fact() {
    let (address, count) = counter();
    let proxy = Proxy::to(address);
    let open = connect(&proxy);
    assert_eq!(ask(&open), Some(1));
    proxy.lose_answers();
    assert_eq!(ask(&connect(&proxy)), Some(2), "a new connection works");
    assert_eq!(ask(&open), None, "the answer is lost");
    assert_eq!(count.load(Ordering::SeqCst), 3, "but the server has done it");
    assert_eq!(proxy.lost(), 1);
}

#[test]
fn answers_come_late() {
    let (address, count) = counter();
    let proxy = Proxy::to(address);
    let mut open = connect(&proxy);
    proxy.delay(Duration::from_millis(10));
    let begun = Instant::now();
    assert_eq!(ask(&open), Some(1));
    assert!(begun.elapsed() >= Duration::from_millis(20), "there and back");
    proxy.delay(Duration::ZERO);
    proxy.stall(true);
    open.write_all(&[0]).unwrap();
    open.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(open.read(&mut [0]).is_err(), "nothing comes");
    assert_eq!(count.load(Ordering::SeqCst), 1, "nothing has arrived");
    proxy.stall(false);
    open.set_read_timeout(None).unwrap();
    let mut byte = [0];
    open.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [2]);
}

#[test]
fn a_request_is_left_in_the_middle() {
    let (address, count) = counter();
    let proxy = Proxy::to(address);
    let mut open = connect(&proxy);
    proxy.stall_after(3);
    open.write_all(&[0; 5]).unwrap();
    let mut bytes = [0; 5];
    while !proxy.is_stalled() || count.load(Ordering::SeqCst) < 3 {
        thread::sleep(Duration::from_millis(1));
    }
    // A thread and two sockets lie between: only time shows that no more comes.
    thread::sleep(Duration::from_millis(20));
    assert_eq!(count.load(Ordering::SeqCst), 3, "no more than these have arrived");
    proxy.stall(false);
    open.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 5]);
}
