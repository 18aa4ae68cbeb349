//! A client of etcd, made of a connection's settings. Files are read and names resolved anew for each.

use super::connection::{Connection, Servers};
use super::error::EtcdError;
use super::keys::CLUSTER_INFORMATION;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::time::timeout;

/// As Calico's client has it (`libcalico-go/lib/backend/etcdv3/etcdv3.go`).
const DIAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(10);

/// Answers of a member that is well, to whoever may not ask this: invalid argument, permission denied, failed precondition,
/// unauthenticated.
const REFUSALS: [i32; 4] = [3, 7, 9, 16];

/// The services of SRV records, and how they are spoken to.
const SERVICES: [(&str, &str); 2] = [("_etcd-client-ssl._tcp", "https"), ("_etcd-client._tcp", "http")];

/// Connects to a member that answers and knows its leader: each agent and each time to another, so that all have their share.
///
/// One connection over all of them would go on asking those that are gone: with one of three away, most sessions would fail.
pub(super) async fn connect(connection: &Connection) -> Result<Client, EtcdError> {
    let mut endpoints = endpoints(&connection.servers).await?;
    let random = RandomState::new();
    endpoints.sort_by_cached_key(|endpoint| random.hash_one(endpoint));
    let mut failure = EtcdError::NoServers;
    for endpoint in &endpoints {
        match connect_to(connection, endpoint).await {
            Ok(client) => return Ok(client),
            Err(error) => {
                tracing::debug!(endpoint, %error, "this member of etcd cannot be used");
                failure = error;
            }
        }
    }
    Err(failure)
}

async fn connect_to(connection: &Connection, endpoint: &str) -> Result<Client, EtcdError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(DIAL)
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_PATIENCE)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some((name, password)) = &connection.user {
        options = options.with_user(name.to_string(), password.reveal());
    }
    if endpoint.starts_with("https://") {
        options = options.with_tls(tls(connection)?);
    }
    let connecting = timeout(DIAL, Client::connect([endpoint], Some(options))).await;
    let client = connecting.map_err(|_| EtcdError::Silent { what: "users", patience: DIAL })?;
    let client = client.map_err(|source| EtcdError::Connect { server: endpoint.into(), source })?;
    // It connects when it is asked something.
    let asking = timeout(DIAL, client.kv_client().get(CLUSTER_INFORMATION, None)).await;
    match asking.map_err(|_| EtcdError::Silent { what: "clusterinformations", patience: DIAL })? {
        Ok(_) => Ok(client),
        Err(etcd_client::Error::GRpcStatus(status)) if REFUSALS.contains(&i32::from(status.code())) => {
            Ok(client)
        }
        Err(source) => Err(EtcdError::Connect { server: endpoint.into(), source }),
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
