//! Logs to stderr, and traces to whoever collects them.

use std::{env, io::stderr, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt as _, registry::LookupSpan, util::SubscriberInitExt as _,
};

/// Where traces go, as OpenTelemetry names it: none are made unless one of these is set.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// How traces are sent: what a collector listens for at port 4318.
const PROTOCOL: &str = "http/protobuf";

/// Where another way may be asked for, the more particular first.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Logs and traces until it is dropped: then what was not sent yet is.
#[derive(Debug)]
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Logs say nothing unless `RUST_LOG` asks; `POTLUCK_LOG=json` makes an object of each line. Traces are sent by OTLP over
    /// HTTP, where OpenTelemetry's own variables say so.
    pub(crate) fn start() -> Self {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
        let provider = provider();
        let traces = provider.as_ref().map(|provider| {
            let tracer = provider.tracer("potluck");
            tracing_opentelemetry::layer().with_tracer(tracer).with_filter(filter_fn(is_ours))
        });
        tracing_subscriber::registry().with(traces).with(logs().with_filter(filter)).init();
        Self { provider }
    }
}

/// How often the number of tasks is logged.
const TASKS_EVERY: Duration = Duration::from_secs(10);

/// Says, now and then, how many tasks the program has, this one included, where `RUST_LOG=potluck::tasks=debug` asks for it: whether they
/// become more.
pub(crate) async fn log_tasks() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let mut ticks = tokio::time::interval(TASKS_EVERY);
    while tracing::enabled!(target: "potluck::tasks", tracing::Level::DEBUG) {
        ticks.tick().await;
        tracing::debug!(target: "potluck::tasks", tasks = metrics.num_alive_tasks());
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

fn logs<S: Subscriber + for<'a> LookupSpan<'a>>() -> Box<dyn Layer<S> + Send + Sync> {
    let logs = tracing_subscriber::fmt::layer().with_writer(stderr);
    if env::var_os("POTLUCK_LOG").is_some_and(|form| form == "json") { logs.json().boxed() } else { logs.boxed() }
}

/// Spans of our own crates: what a library says of itself is for logs.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("potluck")
}

/// None where traces are not wanted, or cannot be had: that is logged, and stops nothing.
fn provider() -> Option<SdkTracerProvider> {
    ENDPOINTS.iter().find(|name| env::var_os(name).is_some_and(|endpoint| !endpoint.is_empty()))?;
    let says = |name: &str, what: &str| env::var(name).is_ok_and(|said| said.eq_ignore_ascii_case(what));
    if says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none") {
        return None;
    }
    let asked = PROTOCOLS.iter().find_map(|name| env::var(name).ok()).filter(|asked| !asked.is_empty());
    if let Some(asked) = asked.filter(|asked| asked != PROTOCOL) {
        eprintln!("warning: no traces are sent: they speak {PROTOCOL}, and {asked} was asked for");
        return None;
    }
    // The exporter's own client chooses no cryptography. Whoever has chosen already is left alone.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build() {
        Ok(exporter) => {
            let resource = Resource::builder()
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())));
            let resource = match env::var_os("OTEL_SERVICE_NAME") {
                Some(_) => resource,
                None => resource.with_service_name("potluck"),
            };
            Some(SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build())
        }
        Err(error) => {
            // Nothing logs yet.
            eprintln!("warning: no traces are sent: {error}");
            None
        }
    }
}
