//! `accountant show --denied --follow`: denied flows as they happen, from a running agent.

use super::show::{connect, get, nobody};
use crate::export::denied;
use anyhow::{Context, anyhow};
use http_body_util::BodyExt;
use serde_json::Value;
use std::io::{self, Write};
use std::net::SocketAddr;

/// Prints flows until nobody reads them, or the agent ends.
pub(super) async fn follow(agents: &[SocketAddr], json: bool) -> anyhow::Result<()> {
    for &agent in agents {
        if let Some(mut sender) = connect(agent).await? {
            let answer = get(&mut sender, agent, "/denied/follow").await;
            let mut answer = answer.with_context(|| format!("asking the agent at {agent} (--agent)"))?;
            if !answer.status().is_success() {
                let status = answer.status();
                let text = answer.into_body().collect().await?.to_bytes();
                let text = String::from_utf8_lossy(&text);
                return Err(anyhow!("the agent at {agent} answers {status}: {}", text.trim_end()));
            }
            let mut rest = Vec::new();
            while let Some(frame) = answer.frame().await {
                let Ok(bytes) = frame.with_context(|| ended(agent))?.into_data() else { continue };
                rest.extend_from_slice(&bytes);
                if !print_lines(&mut rest, json)? {
                    return Ok(());
                }
            }
            return Err(anyhow!(ended(agent)));
        }
    }
    Err(nobody(agents))
}

fn ended(agent: SocketAddr) -> String {
    format!("the agent at {agent} tells no more: it was stopped, or its programs were detached")
}

/// Prints the lines that are whole, and leaves the rest. Says whether anybody reads.
fn print_lines(rest: &mut Vec<u8>, json: bool) -> anyhow::Result<bool> {
    let Some(end) = rest.iter().rposition(|&byte| byte == b'\n') else { return Ok(true) };
    let whole: Vec<u8> = rest.drain(..=end).collect();
    let mut text = String::new();
    // Empty ones only show that the agent lives.
    for line in whole.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let flow: Value = serde_json::from_slice(line).context("what the agent tells is no JSON")?;
        text += &if json { format!("{flow}\n") } else { denied::line(&flow) + "\n" };
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads, like `head`, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => Ok(result.map(|()| true)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_printed() {
        let mut rest = b"\n{\"lost\": 1}\n\n{\"los".to_vec();
        assert!(print_lines(&mut rest, true).unwrap());
        assert_eq!(rest, b"{\"los");
        assert!(print_lines(&mut b"<html>\n".to_vec(), true).unwrap_err().to_string().contains("no JSON"));
    }
}
