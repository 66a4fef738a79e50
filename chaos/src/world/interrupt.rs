//! Ctrl-C and SIGTERM: the first asks the harness to end in good order, the second takes every world down and ends it at once.

use super::manifest::Manifest;
use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// Listens from its creation to the end of the process.
#[derive(Clone, Debug)]
pub struct Interrupts {
    token: CancellationToken,
}

impl Interrupts {
    /// Takes SIGINT, SIGTERM and SIGHUP of this process over.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> Result<Interrupts> {
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let (installed, install) = std::sync::mpsc::sync_channel(1);
        let thread = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(listen(&cancelled, &installed)),
                Err(error) => drop(installed.send(Err(error))),
            }
        };
        std::thread::Builder::new().name("interrupts".to_owned()).spawn(thread).context("the thread that listens for Ctrl-C")?;
        install.recv().context("the listener for Ctrl-C ended")?.context("signal handlers")?;
        Ok(Interrupts { token })
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Cancelled when the end is asked for.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

async fn listen(token: &CancellationToken, installed: &std::sync::mpsc::SyncSender<std::io::Result<()>>) {
    let handlers =
        || Ok::<_, std::io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?));
    let (mut interrupt, mut terminate, mut hangup) = match handlers() {
        Ok(handlers) => handlers,
        Err(error) => return drop(installed.send(Err(error))),
    };
    let _ = installed.send(Ok(()));
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        if token.is_cancelled() {
            eprintln!("interrupted again: taking the world down");
            Manifest::undo_own();
            // Whoever woke up meanwhile may take the same world down.
            let _last_word = Manifest::last_word();
            std::process::exit(INTERRUPTED);
        }
        eprintln!("interrupted: ending in good order; once more ends at once");
        token.cancel();
    }
}
