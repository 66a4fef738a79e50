//! One registry per process, read by `/metrics` in OpenMetrics text.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry};
use std::sync::{Arc, Mutex, PoisonError};

/// Metrics of all parts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// `name` in full, such as `trilithon_proxy_clients`; a counter's `_total` and the unit are added by the format.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.lock().register(name, help, metric);
    }

    /// A source that is asked at each scrape.
    pub fn collect(&self, collector: impl Collector) {
        self.lock().register_collector(Box::new(collector));
    }

    /// The text of `/metrics`, of the media type [`Metrics::MEDIA_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.lock()).expect("writing into a String does not fail");
        text
    }

    /// What `encode` returns.
    pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn registered_metrics_are_encoded() {
        let metrics = Metrics::default();
        let clients: Counter = Counter::default();
        metrics.register("trilithon_proxy_clients", "Clients seen", clients.clone());
        clients.inc();
        let text = metrics.encode();
        assert!(text.contains("trilithon_proxy_clients_total 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
