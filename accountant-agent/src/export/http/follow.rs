//! `/denied/follow`: denied flows as they happen, one JSON object a line, for as long as the client reads.
//!
//! Empty lines show that the connection lives. A client that takes nothing for as long as an answer may take is cut off, and
//! one that is slow misses flows and is told how many; nobody waits for it.

use super::Service;
use super::crowd::Member;
use crate::engine::follow::{Follower, Told};
use crate::export::denied;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame};
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::mpsc;

/// How often something is sent.
const ALIVE: Duration = Duration::from_secs(15);
/// How many flows go out at once.
const AT_ONCE: usize = 64;

/// Answers for as long as the client listens.
pub(super) async fn follow(
    State(service): State<Service>,
    // Not there when no connection brought it: in benches.
    member: Option<Extension<Arc<Member>>>,
) -> Response {
    match service.engine.follow().await {
        Ok(follower) => {
            let (lines, body) = mpsc::channel(1);
            tokio::spawn(tell(follower, lines, member.map(|Extension(member)| member)));
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(Lines(body))).into_response()
        }
        Err(reason) => {
            let text = format!("nobody sees denied flows: no programs in the kernel: {reason}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// Tells until the client or the engine has enough.
async fn tell(mut follower: Follower, lines: mpsc::Sender<Bytes>, member: Option<Arc<Member>>) {
    loop {
        let text = tokio::select! {
            text = next(&mut follower) => text,
            () = tokio::time::sleep(ALIVE) => Some("\n".into()),
            () = lines.closed() => None,
        };
        let Some(text) = text else { return };
        if lines.send(text.into()).await.is_err() {
            return;
        }
        // What was before this was taken.
        if let Some(member) = &member {
            member.answers_on();
        }
    }
}

/// The next lines; nothing when there will be none.
async fn next(follower: &mut Follower) -> Option<String> {
    let mut lines = String::new();
    let mut add = |told: Told| {
        let line = match told {
            Told::Flow(entry) => denied::entry(&entry),
            Told::Lost(flows) => denied::lost(flows),
        };
        // A string takes everything.
        let _ = writeln!(lines, "{line}");
    };
    match follower.recv().await {
        Ok(told) => add(told),
        Err(RecvError::Lagged(flows)) => add(Told::Lost(flows)),
        Err(RecvError::Closed) => return None,
    }
    for _ in 1..AT_ONCE {
        match follower.try_recv() {
            Ok(told) => add(told),
            Err(TryRecvError::Lagged(flows)) => add(Told::Lost(flows)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    Some(lines)
}

/// Lines as they come.
struct Lines(mpsc::Receiver<Bytes>);

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|lines| lines.map(|lines| Ok(Frame::data(lines))))
    }
}
