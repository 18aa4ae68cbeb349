//! Proxies before the API server, where most programs look for them: in the environment. As Go's programs have it, a name in
//! capitals counts first, and what is empty is not set.

use super::ConfigError;
use super::setting::{Given, Origin, Setting, without_users};
use super::surroundings::Surroundings;
use accountant_datastore::kubernetes::{Proxies, is_proxy};
use accountant_datastore::secret::Secret;

/// Variables and what they are called where settings are shown.
const HTTP: (&str, &str) = ("HTTP_PROXY", "proxy before http");
const HTTPS: (&str, &str) = ("HTTPS_PROXY", "proxy before https");
const EXCEPT: (&str, &str) = ("NO_PROXY", "no proxy before");

/// What the environment tells.
pub(super) fn find(around: &dyn Surroundings) -> Result<Proxies, ConfigError> {
    let address = |variable| match look_up(variable, around) {
        Some(Given { value, origin }) if !is_proxy(&value) => Err(ConfigError::Value {
            value: without_users(&value),
            origin,
            wanted: "the address of a proxy: http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT",
        }),
        given => Ok(given.map(|given| Secret::from(given.value.as_str()))),
    };
    let except = look_up(EXCEPT, around).map_or("".into(), |given| given.value.into());
    Ok(Proxies { http: address(HTTP)?, https: address(HTTPS)?, except })
}

/// The same, to be shown.
pub(super) fn shown(around: &dyn Surroundings) -> Vec<Setting> {
    let show =
        |variable: (&str, &'static str)| Some(Setting::addresses(variable.1, &look_up(variable, around)?));
    [HTTP, HTTPS, EXCEPT].into_iter().filter_map(show).collect()
}

fn look_up((name, _): (&str, &str), around: &dyn Surroundings) -> Option<Given<String>> {
    let names = [name.to_string(), name.to_lowercase()];
    let given = |name: String| {
        let value = around.variable(&name).filter(|value| !value.is_empty())?;
        Some(Given::new(value, Origin::Variable(name)))
    };
    names.into_iter().find_map(given)
}

#[cfg(test)]
mod tests {
    use super::super::surroundings::fake::Fake;
    use super::*;

    #[test]
    fn the_environment_tells_proxies() {
        let around = Fake::with(&[
            ("HTTPS_PROXY", ""),
            ("https_proxy", "http://u:geheim@tls:1"),
            ("HTTP_PROXY", "plain"),
            ("http_proxy", "other"),
            ("NO_PROXY", "10.0.0.0/8,.local"),
        ]);
        let Proxies { http, https, except } = find(&around).unwrap();
        let reveal = |secret: Option<Secret>| secret.unwrap().reveal().to_string();
        assert_eq!((reveal(http), reveal(https)), ("plain".into(), "http://u:geheim@tls:1".into()));
        assert_eq!(&*except, "10.0.0.0/8,.local");
        let told = |setting: Setting| format!("{}: {} ({})", setting.name, setting.value, setting.origin);
        assert_eq!(
            shown(&around).into_iter().map(told).collect::<Vec<_>>(),
            [
                "proxy before http: plain ($HTTP_PROXY)",
                "proxy before https: http://tls:1 ($https_proxy)",
                "no proxy before: 10.0.0.0/8,.local ($NO_PROXY)"
            ]
        );
        assert_eq!(find(&Fake::default()).unwrap(), Proxies::default());
    }

    #[test]
    fn what_can_be_no_proxy_is_refused() {
        let error = find(&Fake::with(&[("HTTPS_PROXY", "ftp://u:geheim@p")])).unwrap_err().to_string();
        assert!(error.starts_with("$HTTPS_PROXY is \"ftp://p\"") && error.contains("socks5://"), "{error}");
    }
}
