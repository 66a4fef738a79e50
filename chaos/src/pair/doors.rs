//! What clients see of the pair in one datacenter: ports that lead to the primary or to the standby, and a page for the harness.

use super::look::View;
use super::{LOOK_EVERY, PORTS};
use anyhow::{Context as _, Result};
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Clients in progress beyond which new ones are refused.
const CLIENTS_MAX: usize = 500;

async fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.with_context(|| format!("port {port}"))
}

/// Lead whoever connects to the server of that role; where it moves, its clients are cut off and come again.
pub async fn door(view: Rc<RefCell<View>>, port: u16, to_standby: bool) -> Result<()> {
    let listener = listen(port).await?;
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.context("cannot accept")?;
                if clients.len() < CLIENTS_MAX {
                    clients.spawn_local(lead(Rc::clone(&view), client, to_standby));
                }
            }
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
        }
    }
}

async fn lead(view: Rc<RefCell<View>>, mut client: TcpStream, to_standby: bool) {
    let Some((server, address)) = aim(&view.borrow(), to_standby) else { return };
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    let moved = async {
        while aim(&view.borrow(), to_standby).is_none_or(|(now, _)| now == server) {
            sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut stream) => {}
        () = moved => {}
    }
}

fn aim(view: &View, to_standby: bool) -> Option<(usize, SocketAddr)> {
    let server = if to_standby { view.standby().or(view.primary()) } else { view.primary() }?;
    Some((server, SocketAddr::from((view.peer(server)?.address, PORTS.postgres))))
}

/// The status as JSON, whatever is asked for.
pub async fn page(view: Rc<RefCell<View>>, port: u16) -> Result<()> {
    let listener = listen(port).await?;
    loop {
        let (mut stream, _) = listener.accept().await.context("cannot accept")?;
        let body = serde_json::to_string(&view.borrow().status())?;
        // Whoever asks has sent all he has to say in one packet; one who has left misses nothing.
        let _ = stream.read(&mut [0_u8; 1024]).await;
        let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{body}").as_bytes()).await;
    }
}
