//! What each request passes before it is answered: how many are, whether its client may ask, and the headers of the answer.

use super::crowd::Member;
use super::stream::guarded;
use super::web_config::Followed;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// Lets a request through, or refuses it.
pub(super) async fn pass(State(followed): State<Arc<Followed>>, request: Request, next: Next) -> Response {
    let Some(web) = followed.current() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    // Not there when no connection brought it: in benches.
    let member = request.extensions().get::<Arc<Member>>().cloned();
    let answering = match member {
        None => None,
        Some(member) => match member.answer().await {
            None => return refuse(StatusCode::SERVICE_UNAVAILABLE),
            answering => answering,
        },
    };
    let mut response = match web.admit(request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(status) => refuse(status),
    };
    for (name, value) in web.headers() {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    match answering {
        Some(answering) => guarded(response, answering),
        None => response,
    }
}

fn refuse(status: StatusCode) -> Response {
    let reason = match status {
        StatusCode::UNAUTHORIZED => "name and password are missing or wrong\n",
        StatusCode::TOO_MANY_REQUESTS => "more requests than rate_limit allows\n",
        _ => "too many requests at once\n",
    };
    let mut response = (status, reason).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
    }
    response
}
