//! Settings about traces.

use super::{ConfigError, RawConfig};

/// Where traces go, and of how many calls.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// The collector.
    pub endpoint: String,
    /// Share of calls that are traced where their callers do not say.
    pub sample_ratio: f64,
}

/// Ten a second at a thousand calls a second: enough to see where time goes.
const DEFAULT_SAMPLE_RATIO: f64 = 0.01;

// === impl TracesConfig ===

impl TracesConfig {
    pub(super) fn from_raw(raw: &RawConfig) -> Result<Option<Self>, ConfigError> {
        let sample_ratio = raw.otlp_sample_ratio.unwrap_or(DEFAULT_SAMPLE_RATIO);
        if !(0.0..=1.0).contains(&sample_ratio) {
            return Err(bad("otlp_sample_ratio", format!("{sample_ratio} is not within 0 to 1")));
        }
        let Some(endpoint) = &raw.otlp_endpoint else {
            let alone = raw.otlp_sample_ratio.is_some();
            return if alone { Err(bad("otlp_sample_ratio", "needs otlp_endpoint")) } else { Ok(None) };
        };
        let place = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        // What is wrong is not shown: it may be a password.
        match place.and_then(|place| place.trim_end_matches('/').parse::<http::uri::Authority>().ok()) {
            Some(place) if !place.as_str().contains('@') => Ok(Some(Self { endpoint: endpoint.clone(), sample_ratio })),
            _ => Err(bad("otlp_endpoint", "is not http://HOST:PORT or https://HOST:PORT")),
        }
    }
}

fn bad(setting: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::BadValue { setting, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_an_address_without_secrets() {
        let parse = |text: &str| TracesConfig::from_raw(&toml::from_str(text).unwrap());
        assert_eq!(parse("").unwrap(), None);
        let traces = parse("otlp_endpoint = 'http://[::1]:4317/'").unwrap().unwrap();
        assert!(traces.sample_ratio == DEFAULT_SAMPLE_RATIO && traces.endpoint == "http://[::1]:4317/");
        for (text, setting) in [
            ("otlp_endpoint = 'collector:4317'", "otlp_endpoint"),
            ("otlp_endpoint = 'grpc://collector:4317'", "otlp_endpoint"),
            ("otlp_endpoint = 'http://collector:4317/v1/traces'", "otlp_endpoint"),
            ("otlp_endpoint = 'http://user:secret@collector:4317'", "otlp_endpoint"),
            ("otlp_endpoint = 'http://c:1'\notlp_sample_ratio = 1.5", "otlp_sample_ratio"),
            ("otlp_endpoint = 'http://c:1'\notlp_sample_ratio = nan", "otlp_sample_ratio"),
            ("otlp_sample_ratio = 0.5", "otlp_sample_ratio"),
        ] {
            let told = parse(text).unwrap_err().to_string();
            assert!(told.starts_with(&format!("{setting}:")) && !told.contains("secret"), "{text}: {told}");
        }
    }
}
