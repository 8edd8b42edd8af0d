//! A proxy that breaks the connections that go through it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How long a server whose answers are lost must be silent before it counts as having answered all.
const SILENCE: Duration = Duration::from_millis(20);

/// A port of its own from which everything goes to a server, and back, until it is told otherwise.
///
/// Each connection has two threads. All stop when it is dropped, and the connections are closed.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    /// The state has changed.
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Link>>,
    refusing: bool,
    stalled: bool,
    ended: bool,
    delay: Duration,
    /// How many bytes of requests get through before nothing does.
    stall_after: Option<usize>,
}

/// One connection.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// The next answers are lost.
    is_lossy: AtomicBool,
}

impl Proxy {
    /// A proxy for the server at this address, on a port of its own.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    #[must_use]
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|it| Ok((it.local_addr()?, it)));
        let (address, listener) = listener.unwrap_or_else(|error| panic!("there is no port for a proxy: {error}"));
        let shared =
            Shared { target, state: Mutex::default(), changed: Condvar::default(), lost: AtomicU64::default() };
        let shared = Arc::new(shared);
        let proxy = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || shared.listen(&listener));
        proxy
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the server, by way of the proxy.
    ///
    /// # Panics
    ///
    /// When the URL is not the server's.
    #[must_use]
    pub fn url(&self, of_the_server: &str) -> String {
        let (target, here) = (self.shared.target.to_string(), self.address.to_string());
        assert!(of_the_server.contains(&target), "{of_the_server} does not lead to {target}");
        of_the_server.replacen(&target, &here, 1)
    }

    /// Closes all connections, now.
    pub fn cut(&self) {
        for link in self.shared.state().links.drain(..) {
            link.cut();
        }
    }

    /// From now on new connections are closed at once; or no longer. Those that are open stay.
    pub fn refuse(&self, refuse: bool) {
        self.shared.change(|state| state.refusing = refuse);
    }

    /// From now on nothing gets through in either direction, while connections stay open; or no longer, and what
    /// was held back arrives.
    pub fn stall(&self, stall: bool) {
        self.shared.change(|state| state.stalled = stall);
    }

    /// Lets so many more bytes of requests through, and from then on nothing, as [`stall`](Self::stall): a server is
    /// left in the middle of a request.
    pub fn stall_after(&self, bytes: usize) {
        self.shared.change(|state| state.stall_after = Some(bytes));
    }

    /// True while nothing gets through.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.shared.state().stalled
    }

    /// Holds back for so long what goes through, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|state| state.delay = delay);
    }

    /// The next answers on each connection that is open now are lost, and then the connection is cut: the server
    /// has done what it was asked, and the client does not hear of it. New connections work.
    pub fn lose_answers(&self) {
        for link in &self.shared.state().links {
            link.is_lossy.store(true, Ordering::Release);
        }
    }

    /// On how many connections answers were lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Acquire)
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().links.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| state.ended = true);
        self.cut();
        // Lets the listening thread see it.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn listen(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.state().ended {
                return;
            }
            // A client that has gone, or a server that is down: the client sees a connection that is closed.
            let _ = client.and_then(|client| self.link(client));
        }
    }

    fn link(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        if self.state().refusing {
            return Ok(());
        }
        let server = TcpStream::connect(self.target)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let link = Arc::new(Link { client, server, is_lossy: AtomicBool::new(false) });
        let mut state = self.state();
        if state.refusing || state.ended {
            return Ok(());
        }
        state.links.push(Arc::clone(&link));
        drop(state);
        for pump in [Self::requests, Self::answers] {
            let (shared, link) = (Arc::clone(self), Arc::clone(&link));
            thread::spawn(move || {
                let _ = pump(&shared, &link);
                link.cut();
                shared.state().links.retain(|other| !Arc::ptr_eq(other, &link));
            });
        }
        Ok(())
    }

    fn requests(&self, link: &Link) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let bytes = (&link.client).read(&mut buffer)?;
            if bytes == 0 {
                return Ok(());
            }
            self.hold_back();
            let at_once = self.let_through(bytes);
            (&link.server).write_all(&buffer[..at_once])?;
            if at_once < bytes {
                self.hold_back();
                (&link.server).write_all(&buffer[at_once..bytes])?;
            }
        }
    }

    fn answers(&self, link: &Link) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let bytes = (&link.server).read(&mut buffer)?;
            if bytes == 0 {
                return Ok(());
            }
            self.hold_back();
            if link.is_lossy.load(Ordering::Acquire) {
                self.lost.fetch_add(1, Ordering::AcqRel);
                link.server.set_read_timeout(Some(SILENCE))?;
                while (&link.server).read(&mut buffer)? > 0 {}
                return Ok(());
            }
            (&link.client).write_all(&buffer[..bytes])?;
        }
    }

    /// How many of these bytes of a request get through before nothing does.
    fn let_through(&self, bytes: usize) -> usize {
        let mut state = self.state();
        let Some(left) = state.stall_after else { return bytes };
        if bytes < left {
            state.stall_after = Some(left - bytes);
            return bytes;
        }
        state.stall_after = None;
        state.stalled = true;
        left
    }

    fn hold_back(&self) {
        let state = self.state();
        let delay = state.delay;
        let state = self.changed.wait_while(state, |state| state.stalled && !state.ended);
        drop(state);
        if !delay.is_zero() {
            thread::sleep(delay);
        }
    }
}

impl Link {
    fn cut(&self) {
        for stream in [&self.client, &self.server] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
