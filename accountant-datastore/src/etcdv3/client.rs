//! A client of etcd, made of a connection's settings. Files are read and names resolved anew for each.

use super::connection::{Connection, Servers};
use super::error::EtcdError;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use std::time::Duration;

/// As Calico's client has it (`libcalico-go/lib/backend/etcdv3/etcdv3.go`).
const DIAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(10);

/// The services of SRV records, and how they are spoken to.
const SERVICES: [(&str, &str); 2] = [("_etcd-client-ssl._tcp", "https"), ("_etcd-client._tcp", "http")];

/// Connects.
pub(super) async fn connect(connection: &Connection) -> Result<Client, EtcdError> {
    let endpoints = endpoints(&connection.servers).await?;
    let mut options = ConnectOptions::new()
        .with_connect_timeout(DIAL)
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_PATIENCE)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some((name, password)) = &connection.user {
        options = options.with_user(name.to_string(), password.reveal());
    }
    if endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
        options = options.with_tls(tls(connection)?);
    }
    let servers = endpoints.join(", ");
    let connecting = tokio::time::timeout(DIAL, Client::connect(&endpoints, Some(options)));
    match connecting.await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(source)) => Err(EtcdError::Connect { servers, source }),
        Err(_) => Err(EtcdError::Silent { what: "users", patience: DIAL }),
    }
}

fn tls(connection: &Connection) -> Result<TlsOptions, EtcdError> {
    let mut tls = match &connection.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca.read()?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let Some((cert, key)) = &connection.identity {
        tls = tls.identity(Identity::from_pem(cert.read()?, key.read()?));
    }
    Ok(tls)
}

async fn endpoints(servers: &Servers) -> Result<Vec<String>, EtcdError> {
    let domain = match servers {
        Servers::Endpoints(endpoints) => return Ok(endpoints.iter().map(ToString::to_string).collect()),
        Servers::Domain(domain) => domain,
    };
    let wrong = |source: hickory_resolver::net::NetError| EtcdError::Dns { domain: domain.clone(), source };
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build()).map_err(wrong)?;
    let mut endpoints = Vec::new();
    let mut failure = None;
    for (service, scheme) in SERVICES {
        match resolver.srv_lookup(format!("{service}.{domain}")).await {
            Ok(found) => {
                for record in found.answers() {
                    if let RData::SRV(srv) = &record.data {
                        endpoints.push(endpoint(scheme, &srv.target.to_utf8(), srv.port));
                    }
                }
            }
            Err(error) if error.is_no_records_found() => {}
            Err(error) => failure = Some(error),
        }
    }
    match (endpoints.is_empty(), failure) {
        (false, _) => Ok(endpoints),
        (true, Some(error)) => Err(wrong(error)),
        (true, None) => Err(EtcdError::NoRecords { domain: domain.clone() }),
    }
}

/// Names in DNS end with a dot, which certificates do not have.
fn endpoint(scheme: &str, target: &str, port: u16) -> String {
    format!("{scheme}://{}:{port}", target.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_record_is_an_endpoint() {
        assert_eq!(super::endpoint("https", "etcd-0.example.com.", 2379), "https://etcd-0.example.com:2379");
    }
}
