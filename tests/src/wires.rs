//! A rough road for a protocol over TCP: connections end in the middle of a request or of an answer, and what is sent waits. Which
//! connection meets what is decided by a seed and the order of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A connection that ends soon does so within so many bytes.
const SOON: u64 = 3_000;

/// A road to a server.
pub struct Wires {
    behind: String,
    /// Most bytes of a connection in one direction.
    most: u64,
    random: AtomicU64,
    /// Connections that ended on the way so far.
    pub cut: AtomicU64,
}

impl Wires {
    /// Leads whoever comes to the port `at` to `behind` (`host:port`). A connection ends after at most `most` bytes in one direction.
    pub async fn to(address: &str, at: u16, behind: u16, seed: u64, most: u64) -> Arc<Self> {
        let listener = TcpListener::bind((address, at)).await.expect("a port");
        let wires = Arc::new(Self { behind: format!("{address}:{behind}"), most, random: AtomicU64::new(seed), cut: AtomicU64::new(0) });
        let road = Arc::clone(&wires);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&road).lead(client));
            }
        });
        wires
    }

    fn draw(&self, below: u64) -> u64 {
        let step = |state: u64| state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let before = self.random.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| Some(step(state))).unwrap_or_default();
        (step(before) >> 33) % below
    }

    async fn lead(self: Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(&self.behind).await else { return };
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        // Half of them end soon; the others let large answers through.
        let bytes = || if self.draw(2) == 0 { self.draw(SOON) } else { self.draw(self.most) };
        let (asked, answered) = (bytes(), bytes());
        // Both directions end with the first of them.
        tokio::select! {
            () = self.carry(from_client, to_server, asked) => {}
            () = self.carry(from_server, to_client, answered) => {}
        }
    }

    /// Carries so many bytes, some of them late.
    async fn carry(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut left: u64) {
        let mut block = vec![0; 4 << 10];
        while let Ok(read @ 1..) = from.read(&mut block).await {
            if self.draw(20) == 0 {
                tokio::time::sleep(Duration::from_millis(self.draw(300))).await;
            }
            let fits = (read as u64).min(left) as usize;
            left -= fits as u64;
            if to.write_all(&block[..fits]).await.is_err() {
                return;
            }
            if fits < read {
                self.cut.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}
