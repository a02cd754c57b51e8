//! Events of the PCI bus, as the kernel sends them to everybody who listens (lib/kobject_uevent.c).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket};

/// The kernel's own messages; those of udev have another group.
const KERNEL_GROUP: u32 = 1;
/// UEVENT_BUFFER_SIZE and a header.
const MESSAGE_BYTES: usize = 4096;
const SUBSYSTEM: &[u8] = b"SUBSYSTEM=pci";

/// A thread that calls somebody at each event of the bus. Ends when dropped.
#[derive(Debug)]
pub struct BusEvents {
    /// Closed to end the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl BusEvents {
    /// Calls `changed` after each event, or once after several that came together.
    ///
    /// # Errors
    /// The kernel gives no socket for events, or no thread can be had.
    pub fn listen(changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        BusEvents::on(socket, changed)
    }

    fn on(socket: OwnedFd, changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let stopped = OwnedFd::from(stopped);
        let thread = thread::Builder::new().name("peerfs-bus".into()).spawn(move || {
            while wait(&socket, &stopped) {
                match drain(&socket) {
                    Ok(true) => changed(),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, "events of the PCI bus are not heard any more");
                        return;
                    }
                }
            }
        })?;
        Ok(BusEvents { stop: Some(stop.into()), thread: Some(thread) })
    }
}

impl Drop for BusEvents {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread for events of the PCI bus has panicked");
        }
    }
}

/// Waits for a message; `false`: there is nothing to wait for any more.
fn wait(socket: &OwnedFd, stopped: &OwnedFd) -> bool {
    loop {
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(_) => return false,
            Ok(_) => return ready[1].revents().is_some_and(|events| events.is_empty()),
        }
    }
}

/// Reads what there is. Whether something of the bus was among it, or got lost.
fn drain(socket: &OwnedFd) -> nix::Result<bool> {
    let mut message = [0; MESSAGE_BYTES];
    let mut changed = false;
    loop {
        match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut message) {
            Ok((0, _)) => return Err(Errno::EPIPE),
            // Any process may send to the socket's own address; the kernel is number 0.
            Ok((_, Some(sender))) if sender.pid() != 0 => {}
            Ok((length, _)) => changed |= is_of_bus(&message[..length]),
            Err(Errno::ENOBUFS) => changed = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(changed),
            Err(error) => return Err(error),
        }
    }
}

/// `ACTION@PATH`, then variables, each with a zero behind it.
fn is_of_bus(message: &[u8]) -> bool {
    message.split(|byte| *byte == 0).skip(1).any(|variable| variable == SUBSYSTEM)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn message(subsystem: &str) -> Vec<u8> {
        format!("add@/devices/pci0000:00/0000:00:04.0\0ACTION=add\0SUBSYSTEM={subsystem}\0SEQNUM=7\0").into_bytes()
    }

    #[test]
    fn messages_of_the_bus_are_told_from_others() {
        assert!(is_of_bus(&message("pci")));
        for other in ["usb", "pci_bus", "pci_express", ""] {
            assert!(!is_of_bus(&message(other)), "{other}");
        }
        assert!(!is_of_bus(b"") && !is_of_bus(b"SUBSYSTEM=pci"), "the first part is no variable");
    }

    #[test]
    fn each_event_of_the_bus_is_told_until_the_end() {
        let (ours, theirs) = UnixDatagram::pair().expect("sockets");
        theirs.set_nonblocking(true).expect("a flag");
        let (told, hears) = mpsc::channel();
        let events = BusEvents::on(theirs.into(), move || told.send(()).expect("the test listens")).expect("a thread");
        for _ in 0..2 {
            ours.send(&message("pci")).expect("sent");
            assert_eq!(hears.recv_timeout(PATIENCE), Ok(()));
        }
        ours.send(&message("usb")).expect("sent");
        drop(events);
        // The thread has ended and with it the sender: nothing more was told.
        assert_eq!(hears.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn the_kernel_lets_everybody_listen() {
        drop(BusEvents::listen(|| {}).expect("a socket of the kernel"));
    }
}
