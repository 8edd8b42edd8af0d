//! Where the server is, as whom to go there, and how the way is protected.

use std::{collections::hash_map::RandomState, fmt, hash::BuildHasher, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::time::{Instant, timeout};
use tokio_postgres::{
    Client, Config, Connection, Socket,
    config::{Host, LoadBalanceHosts, SslMode},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::no_connection;
use crate::{Error, ErrorKind, Result};

/// What keeps a connection going.
pub(super) type ServerConnection = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// A place to connect to.
#[derive(Clone)]
pub(super) struct Target {
    config: Config,
    check: Check,
    roots: Roots,
}

/// What of the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Issuer,
    IssuerAndName,
}

/// Who may issue it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Roots {
    System,
    File(PathBuf),
}

impl Target {
    /// The place that a URL names. The error never repeats the URL, which may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (rest, mode, root) = take_tls_options(url);
        let mut config: Config = rest.parse().map_err(|error: tokio_postgres::Error| {
            // Says what is wrong with which option, and never repeats a value.
            let why = std::error::Error::source(&error).map(ToString::to_string);
            // But the name of an unknown option may be a part of anything.
            let why = why.filter(|why| !why.starts_with("unknown option"));
            invalid(format!(
                "this is no URL of a PostgreSQL server, like postgres://user:password@host:5432/database?sslmode=require{}",
                why.map(|why| format!(": {why}")).unwrap_or_default()
            ))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(invalid("the URL of the execution log names no host".into()));
        }
        let (hosts, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
        if hosts.min(addresses) > 0 && hosts != addresses {
            return Err(invalid("the URL of the execution log names another number of hosts than of addresses".into()));
        }
        if config.get_ports().len() > 1 && config.get_ports().len() != hosts.max(addresses) {
            return Err(invalid("the URL of the execution log names another number of ports than of hosts".into()));
        }
        let roots = match root.as_deref() {
            None | Some("system") => Roots::System,
            Some(path) => Roots::File(path.into()),
        };
        let (ssl_mode, check) = match (mode.as_deref(), root.as_deref()) {
            (Some("disable"), _) => (SslMode::Disable, Check::Nothing),
            (Some("require") | None, Some("system")) | (Some("verify-full"), _) => {
                (SslMode::Require, Check::IssuerAndName)
            }
            // As PostgreSQL's own programs do.
            (Some("require"), Some(_)) | (Some("verify-ca"), _) => (SslMode::Require, Check::Issuer),
            (Some("require"), None) => (SslMode::Require, Check::Nothing),
            (Some("allow" | "prefer") | None, _) => (SslMode::Prefer, Check::Nothing),
            _ => {
                let modes = "disable, prefer, require, verify-ca or verify-full";
                return Err(invalid(format!("sslmode is {modes}")));
            }
        };
        config.ssl_mode(ssl_mode);
        if config.get_application_name().is_none() {
            config.application_name("ergon");
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(30));
        }
        config.keepalives_idle(config.get_keepalives_idle().min(Duration::from_secs(60)));
        Ok(Self { config, check, roots })
    }

    /// Connects to the first host that has us. A host that stays silent, before or after it has accepted the
    /// connection, leaves the others their share of the time until `deadline`.
    pub(super) async fn connect(&self, deadline: Instant) -> Result<(Client, ServerConnection)> {
        let begun = Instant::now();
        let hosts = self.hosts();
        let mut left = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
        let mut refused = None;
        for host in hosts {
            let mut share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left -= 1;
            if let Some(asked) = host.get_connect_timeout() {
                share = share.min(*asked);
            }
            match timeout(share, host.connect(self.tls()?)).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => refused = Some(no_connection(self, error)),
                Err(_) => refused = Some(self.silent(begun.elapsed())),
            }
        }
        Err(refused.unwrap_or_else(|| self.silent(begun.elapsed())))
    }

    /// The error of a server that did not say anything for so long.
    pub(super) fn silent(&self, within: Duration) -> Error {
        let within = Duration::from_millis(within.as_millis().try_into().unwrap_or(u64::MAX));
        Error::new(ErrorKind::Unavailable, format!("{self} did not answer within {within:?}"))
    }

    /// The hosts, each by itself, in the order in which they are tried.
    fn hosts(&self) -> Vec<Config> {
        let all = &self.config;
        let count = all.get_hosts().len().max(all.get_hostaddrs().len());
        let mut hosts: Vec<Config> = (0..count).map(|index| self.host(index)).collect();
        if all.get_load_balance_hosts() == LoadBalanceHosts::Random {
            hosts.sort_by_cached_key(|_| RandomState::new().hash_one(0));
        }
        hosts
    }

    fn host(&self, index: usize) -> Config {
        let all = &self.config;
        let mut one = Config::new();
        match all.get_hosts().get(index) {
            Some(Host::Tcp(name)) => _ = one.host(name),
            #[cfg(unix)]
            Some(Host::Unix(path)) => _ = one.host_path(path),
            None => {}
        }
        all.get_hostaddrs().get(index).map(|address| one.hostaddr(*address));
        all.get_ports().get(index).or(all.get_ports().first()).map(|port| one.port(*port));
        all.get_user().map(|user| one.user(user));
        all.get_password().map(|password| one.password(password));
        all.get_dbname().map(|name| one.dbname(name));
        all.get_options().map(|options| one.options(options));
        all.get_application_name().map(|name| one.application_name(name));
        all.get_connect_timeout().map(|limit| one.connect_timeout(*limit));
        all.get_tcp_user_timeout().map(|limit| one.tcp_user_timeout(*limit));
        all.get_keepalives_interval().map(|interval| one.keepalives_interval(interval));
        all.get_keepalives_retries().map(|retries| one.keepalives_retries(retries));
        one.ssl_mode(all.get_ssl_mode())
            .ssl_negotiation(all.get_ssl_negotiation())
            .keepalives(all.get_keepalives())
            .keepalives_idle(all.get_keepalives_idle())
            .target_session_attrs(all.get_target_session_attrs())
            .channel_binding(all.get_channel_binding())
            .load_balance_hosts(all.get_load_balance_hosts());
        one
    }

    /// What makes the connections secure.
    fn tls(&self) -> Result<MakeRustlsConnect> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let failed = |error: rustls::Error| invalid("TLS cannot be set up".into()).with_source(error);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
        let config = match self.check {
            Check::IssuerAndName => builder.with_root_certificates(self.root_store()?).with_no_client_auth(),
            Check::Issuer | Check::Nothing => {
                let inner = if self.check == Check::Issuer {
                    let roots = Arc::new(self.root_store()?);
                    let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
                    Some(inner.map_err(|error| invalid("TLS cannot be set up".into()).with_source(error))?)
                } else {
                    None
                };
                let verifier = Arc::new(AnyName { inner, provider });
                builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
            }
        };
        Ok(MakeRustlsConnect::new(config))
    }

    fn root_store(&self) -> Result<RootCertStore> {
        let mut store = RootCertStore::empty();
        match &self.roots {
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                store.add_parsable_certificates(found.certs);
                if store.is_empty() {
                    return Err(invalid("this machine has no root certificates; name a file as sslrootcert".into()));
                }
            }
            Roots::File(path) => {
                let unusable = |what: &str| invalid(format!("the root certificates in {} {what}", path.display()));
                let certificates = CertificateDer::pem_file_iter(path)
                    .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
                    .map_err(|error| unusable("cannot be read").with_source(error))?;
                let (added, _) = store.add_parsable_certificates(certificates);
                if added == 0 {
                    return Err(unusable("are none"));
                }
            }
        }
        Ok(store)
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

/// Takes the options out of a URL that the driver does not know.
fn take_tls_options(url: &str) -> (String, Option<String>, Option<String>) {
    let (mut mode, mut root) = (None, None);
    let mut keep = |pair: &str, decode: fn(&str) -> String| match pair.split_once('=') {
        Some(("sslmode", value)) => {
            mode = Some(decode(value));
            false
        }
        Some(("sslrootcert", value)) => {
            root = Some(decode(value));
            false
        }
        _ => true,
    };
    let rest = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        match url.split_once('?') {
            Some((place, query)) => {
                let kept: Vec<_> = query.split('&').filter(|pair| keep(pair, percent_decode)).collect();
                if kept.is_empty() { place.to_owned() } else { format!("{place}?{}", kept.join("&")) }
            }
            None => url.to_owned(),
        }
    } else {
        let plain = |value: &str| value.trim_matches('\'').to_owned();
        url.split(' ').filter(|pair| keep(pair, plain)).collect::<Vec<_>>().join(" ")
    };
    (rest, mode, root)
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        rest = if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            &after[2..]
        } else {
            bytes.push(*first);
            after
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.config.get_user().map(ToOwned::to_owned);
        match self.config.get_dbname().map(ToOwned::to_owned).or(user) {
            Some(database) => write!(f, "database {database:?} at ")?,
            None => write!(f, "the default database at ")?,
        }
        let ports = self.config.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let hosts: Vec<String> = match self.config.get_hosts() {
            [] => self.config.get_hostaddrs().iter().map(ToString::to_string).collect(),
            hosts => hosts
                .iter()
                .map(|host| match host {
                    Host::Tcp(name) => name.clone(),
                    #[cfg(unix)]
                    Host::Unix(path) => path.display().to_string(),
                })
                .collect(),
        };
        for (index, host) in hosts.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{host}:{}", port(index))?;
        }
        Ok(())
    }
}

/// Accepts a certificate whatever name it is for, and without `inner` whoever has issued it.
#[derive(Debug)]
struct AnyName {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_without_the_password() {
        for (url, place) in [
            ("postgres://ada:secret@db.example:6432/orders", "database \"orders\" at db.example:6432"),
            ("postgresql://ada:secret@db.example", "database \"ada\" at db.example:5432"),
            ("postgres://ada:secret@a,b:7/x?sslmode=require", "database \"x\" at a:5432, b:7"),
            ("host=/run/pg user=ada password=secret dbname=x", "database \"x\" at /run/pg:5432"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(target.to_string(), place);
        }
    }

    #[test]
    fn a_host_has_all_that_the_url_says() {
        let url = "postgres://ada:secret@a:1,b:2/x?sslmode=require&sslnegotiation=direct&connect_timeout=2\
                   &tcp_user_timeout=3&keepalives=0&keepalives_idle=4&keepalives_interval=5&keepalives_retries=6\
                   &target_session_attrs=read-write&channel_binding=require&application_name=y&options=-c%20a=b";
        let hosts = Target::parse(url).unwrap().hosts();
        assert_eq!(hosts.len(), 2);
        for (host, name) in hosts.iter().zip(["a:1", "b:2"]) {
            let alone = Target::parse(&url.replace("a:1,b:2", name)).unwrap();
            assert_eq!(*host, alone.config);
        }
        let spread = Target::parse("host=a,b,c hostaddr=::1,::2,::3 user=ada load_balance_hosts=random").unwrap();
        for host in spread.hosts() {
            let address = match &host.get_hosts()[0] {
                Host::Tcp(name) => format!("::{}", name.as_bytes()[0] - b'a' + 1),
                Host::Unix(_) => unreachable!(),
            };
            assert_eq!(host.get_hostaddrs()[0].to_string(), address, "a host keeps its address");
        }
    }

    #[test]
    fn tls_goes_by_sslmode_and_sslrootcert() {
        let tls = |options: &str| {
            let target = Target::parse(&format!("postgres://ada@db.example/x{options}")).unwrap();
            (target.config.get_ssl_mode(), target.check, target.roots)
        };
        assert_eq!(tls(""), (SslMode::Prefer, Check::Nothing, Roots::System));
        assert_eq!(tls("?sslmode=disable"), (SslMode::Disable, Check::Nothing, Roots::System));
        assert_eq!(tls("?connect_timeout=3&sslmode=require"), (SslMode::Require, Check::Nothing, Roots::System));
        let file = Roots::File("/etc/ca.pem".into());
        assert_eq!(tls("?sslrootcert=%2Fetc/ca.pem&sslmode=require"), (SslMode::Require, Check::Issuer, file.clone()));
        assert_eq!(tls("?sslmode=verify-full&sslrootcert=/etc/ca.pem"), (SslMode::Require, Check::IssuerAndName, file));
        assert_eq!(tls("?sslrootcert=system"), (SslMode::Require, Check::IssuerAndName, Roots::System));
        let target = Target::parse("host=db.example sslmode=verify-ca user=ada").unwrap();
        assert_eq!((target.config.get_ssl_mode(), target.check), (SslMode::Require, Check::Issuer));
    }

    #[test]
    fn what_is_no_url_is_refused_without_being_repeated() {
        for url in [
            "",
            "secret",
            "postgres://",
            "mysql://ada:secret@db.example/x",
            "postgres://ada:secret@db.example:secret/x",
            "postgres://ada:secret@db.example/x?secret=secret",
            "postgres://ada:secret@db.example/x?sslmode=secret",
            "postgres://ada:%zz@db.example/x?connect_timeout=secret",
            "user=ada password=secret",
            "host=db.example user=ada password='secret",
        ] {
            let error = Target::parse(url).map(|target| target.to_string()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }
}
