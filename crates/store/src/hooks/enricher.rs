//! The hook that comes with the store: it fills in fields of the metadata.

use super::{Draft, Hook};
use crate::event::NewEvent;
use crate::guard::BoxError;
use crate::json::{InvalidJson, Json};
use crate::stream_name::StreamName;

/// Adds fields to the metadata of each event that is appended.
///
/// A field that the event has already stays as the caller gave it.
///
/// ```
/// use store::{Hooks, Json, MetadataEnricher};
///
/// let enricher = MetadataEnricher::new("deployment")
///     .field("environment", Json::of(&"staging")?)
///     .field_from("stream_length", |stream, _| Json::of(&stream.as_str().len()).ok());
/// let hooks = Hooks::new().with(0, enricher);
/// # Ok::<(), store::InvalidJson>(())
/// ```
pub struct MetadataEnricher {
    name: String,
    fields: Vec<(String, Box<Source>)>,
}

type Source = dyn Fn(&StreamName, &NewEvent) -> Option<Json> + Send + Sync;

impl MetadataEnricher {
    /// An enricher without fields. The name is for people: it stands in errors.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), fields: Vec::new() }
    }

    /// With a field that always has this value.
    #[must_use]
    pub fn field(self, name: impl Into<String>, value: Json) -> Self {
        self.field_from(name, move |_, _| Some(value.clone()))
    }

    /// With a field whose value is found for each event, or not.
    #[must_use]
    pub fn field_from(
        mut self,
        name: impl Into<String>,
        value: impl Fn(&StreamName, &NewEvent) -> Option<Json> + Send + Sync + 'static,
    ) -> Self {
        self.fields.push((name.into(), Box::new(value)));
        self
    }

    fn enriched(&self, stream: &StreamName, event: &NewEvent) -> Result<Option<Json>, InvalidJson> {
        let mut enriched: Option<Json> = None;
        for (field, value) in &self.fields {
            let metadata = enriched.as_ref().unwrap_or(&event.metadata);
            if metadata.field(field).is_none()
                && let Some(value) = value(stream, event)
            {
                enriched = Some(metadata.with_field(field, &value)?);
            }
        }
        Ok(enriched)
    }
}

impl Hook for MetadataEnricher {
    fn name(&self) -> &str {
        &self.name
    }

    fn before_append(&self, draft: &mut Draft<'_>) -> Result<(), BoxError> {
        draft.change_metadata(|stream, event| Ok(self.enriched(stream, event)?))
    }
}

impl std::fmt::Debug for MetadataEnricher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fields = self.fields.iter().map(|(name, _)| name);
        f.debug_struct("MetadataEnricher")
            .field("name", &self.name)
            .field("fields", &fields.collect::<Vec<_>>())
            .finish()
    }
}
