//! A gate in front of a server: connections pass while it is open; while it is closed, those that are there end and new
//! ones are refused, as with a server that is gone.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A gate at an address of its own.
pub struct Gate {
    /// Where it listens while it is open.
    pub address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Gate {
    /// Opens a gate at a free port of `host` to the loopback port `behind`.
    pub async fn open(host: &str, behind: u16) -> Self {
        let listener = TcpListener::bind((host, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (open, state) = watch::channel(true);
        tokio::spawn(keep(listener, address, behind, state));
        Self { address, open }
    }

    /// Opens or closes it.
    pub fn set(&self, open: bool) {
        self.open.send_replace(open);
    }
}

async fn keep(mut listener: TcpListener, address: SocketAddr, behind: u16, mut open: watch::Receiver<bool>) {
    loop {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((mut outside, _)) = accepted else { continue };
                    connections.spawn(async move {
                        if let Ok(mut inside) = TcpStream::connect(("127.0.0.1", behind)).await {
                            drop(tokio::io::copy_bidirectional(&mut outside, &mut inside).await);
                        }
                    });
                }
                // Connections that have ended are forgotten.
                Some(_) = connections.join_next() => {}
                changed = open.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if !*open.borrow() {
                        break;
                    }
                }
            }
        }
        drop((listener, connections));
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                // The port is free again when the last connection's end is through.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
    }
}
