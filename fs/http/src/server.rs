//! Threads that serve connections, as many as there may be connections.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Shutdown as SocketShutdown, shutdown};

use crate::connection::{self, Handler};
use crate::{Request, Response};

/// What is waited before a failed accept(2) is tried again: descriptors may have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address is taken, or not ours.
#[derive(Debug, thiserror::Error)]
#[error("{address} cannot be listened on: {source}; choose another port, or 0 for any that is free")]
pub struct BindError {
    /// As asked for.
    pub address: SocketAddr,
    /// What bind(2) or listen(2) answered.
    pub source: io::Error,
}

/// An address that is listened on and not served yet: connections wait.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

impl Endpoint {
    /// Takes an address.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(address: SocketAddr) -> Result<Endpoint, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Endpoint { listener, address })
    }

    /// The address, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves it, at most `connections` at one time; others wait in the kernel's queue.
    ///
    /// # Errors
    /// The threads could not be started.
    pub fn serve(
        self,
        connections: usize,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> io::Result<HttpServer> {
        let shared = Arc::new(Shared {
            listener: self.listener,
            handler: Box::new(handler),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
            open: (0..connections).map(|_| Mutex::default()).collect(),
        });
        let mut server = HttpServer { address: self.address, shared: Arc::clone(&shared), workers: Vec::new() };
        for number in 0..connections {
            let shared = Arc::clone(&shared);
            let worker = Builder::new().name("peerfs-http".into()).spawn(move || shared.work(number))?;
            server.workers.push(worker);
        }
        Ok(server)
    }
}

/// A served address. Dropping it ends every connection, and waits for requests that are being answered.
pub struct HttpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    listener: TcpListener,
    handler: Box<Handler>,
    stopping: Mutex<bool>,
    stopped: Condvar,
    /// The connection of each worker.
    open: Vec<Mutex<Option<TcpStream>>>,
}

impl HttpServer {
    /// The address that is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            // Handlers that panic are contained, so it cannot have.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, number: usize) {
        while !self.is_stopping() {
            match self.listener.accept() {
                Ok((stream, client)) => {
                    if let Err(error) = self.serve(number, stream) {
                        tracing::debug!(%client, %error, "a client of HTTP went away");
                    }
                }
                Err(error) => self.pause(&error),
            }
        }
    }

    fn serve(&self, number: usize, stream: TcpStream) -> io::Result<()> {
        *lock(&self.open[number]) = Some(stream.try_clone()?);
        // Whoever stops us has seen the connection, or we see that we are to stop.
        let outcome = if self.is_stopping() { Ok(()) } else { connection::serve(&stream, &*self.handler) };
        *lock(&self.open[number]) = None;
        outcome
    }

    fn is_stopping(&self) -> bool {
        *lock(&self.stopping)
    }

    fn pause(&self, error: &io::Error) {
        let stopping = lock(&self.stopping);
        if !*stopping {
            tracing::warn!(%error, "a connection of HTTP cannot be accepted");
            drop(self.stopped.wait_timeout(stopping, ACCEPT_PAUSE).unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn stop(&self) {
        *lock(&self.stopping) = true;
        self.stopped.notify_all();
        // Wakes those who wait in accept(2), on Linux.
        let _already_gone = shutdown(self.listener.as_raw_fd(), SocketShutdown::Both);
        for stream in self.open.iter().filter_map(|open| lock(open).take()) {
            let _already_gone = stream.shutdown(Shutdown::Both);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
