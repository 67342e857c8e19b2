//! `/api/v1/openapi.json`: the API's own description, of the routes and of proto's types.

use std::collections::BTreeMap;

use nodewhy_proto as proto;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{Components, ComponentsBuilder, Info, OpenApiBuilder, RefOr, Schema};

use crate::board::Board;
use crate::serve::routes::{Route, Source};

/// The document.
///
/// # Errors
/// A schema is no JSON: a defect.
pub(super) fn document(
    routes: &BTreeMap<&'static str, Route>,
    board: &Board,
) -> Result<Value, serde_json::Error> {
    let mut info = Info::new("nodewhy agent", env!("CARGO_PKG_VERSION"));
    info.description = Some(about(board));
    let mut document =
        serde_json::to_value(OpenApiBuilder::new().info(info).components(Some(schemas())).build())?;
    let paths: serde_json::Map<String, Value> =
        routes.values().map(|route| (route.path.to_owned(), json!({"get": operation(route)}))).collect();
    if let Some(members) = document.as_object_mut() {
        members.insert("paths".to_owned(), Value::Object(paths));
        members.insert("security".to_owned(), json!([{"token": []}]));
    }
    if let Some(components) = document.pointer_mut("/components").and_then(Value::as_object_mut) {
        let about = "The token of the agent's token file. On its Unix socket none is asked for.";
        let token = json!({"type": "http", "scheme": "bearer", "description": about});
        components.insert("securitySchemes".to_owned(), json!({"token": token}));
    }
    Ok(document)
}

fn about(board: &Board) -> String {
    let names: Vec<&str> = board.collectors().map(|(collector, _)| collector.name()).collect();
    format!(
        "What one node's agent knows. Readers ignore fields that they do not know, and take an unknown word for \
         `unknown`. What could not be read is absent with a reason, never zero. A reading is an object in its \
         collector's own shape; the collectors are {}.",
        names.join(", ")
    )
}

/// Of what the paths answer with, and of all that is in it.
fn schemas() -> Components {
    let mut found = Vec::new();
    add::<proto::NodeInfo>(&mut found);
    add::<proto::State>(&mut found);
    add::<proto::Finding>(&mut found);
    add::<proto::Event>(&mut found);
    add::<proto::Page>(&mut found);
    add::<proto::Answer>(&mut found);
    add::<proto::Problem>(&mut found);
    // utoipa passes over what is flattened, and over what a variant holds.
    add::<proto::Outcome>(&mut found);
    add::<proto::EventBody>(&mut found);
    add::<proto::OomKill>(&mut found);
    add::<proto::KernelMessage>(&mut found);
    add::<proto::LogLine>(&mut found);
    add::<proto::Change>(&mut found);
    add::<proto::ProcessChange>(&mut found);
    add::<proto::Gap>(&mut found);
    ComponentsBuilder::new().schemas_from_iter(found).build()
}

fn add<T: ToSchema>(found: &mut Vec<(String, RefOr<Schema>)>) {
    T::schemas(found);
    found.push((T::name().into_owned(), T::schema()));
}

fn operation(route: &Route) -> Value {
    let parameters: Vec<Value> = route
        .parameters
        .iter()
        .map(|(name, about)| {
            let schema = match *name {
                "readings" => json!({"type": "string", "enum": ["true", "false"]}),
                // Opaque to readers; so much may be told that rubbish is known for it.
                "after" => json!({"type": "string", "pattern": "^[0-9a-f]{1,32}-[0-9]{1,19}$"}),
                _ => json!({"type": "string"}),
            };
            json!({"name": name, "in": "query", "required": false, "description": about, "schema": schema})
        })
        .collect();
    let mut responses = serde_json::Map::new();
    responses.insert("200".to_owned(), json!({"description": route.about, "content": content(route)}));
    for (status, about) in problems(route) {
        let schema = json!({"$ref": "#/components/schemas/Problem"});
        let problem =
            json!({"description": about, "content": {"application/problem+json": {"schema": schema}}});
        responses.insert(status.to_owned(), problem);
    }
    let id = route.path.trim_start_matches("/api/v1/").replace(['/', '.'], "_");
    let mut operation = json!({
        "operationId": id.trim_matches('_'),
        "summary": route.about,
        "parameters": parameters,
        "responses": responses,
    });
    if route.is_open()
        && let Some(members) = operation.as_object_mut()
    {
        members.insert("security".to_owned(), json!([]));
    }
    operation
}

fn content(route: &Route) -> Value {
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let json = |schema: Value| json!({"application/json": {"schema": schema}});
    match &route.source {
        Source::Metrics | Source::Healthz | Source::Readyz => {
            json!({"text/plain": {"schema": {"type": "string"}}})
        }
        Source::Node => json(schema("NodeInfo")),
        Source::State => json(schema("State")),
        Source::Findings => json(json!({"type": "array", "items": schema("Finding")})),
        Source::Events => {
            let event = json!({
                "type": "object",
                "description": "Each event of the stream: its kind, its cursor, and the Event as JSON.",
                "required": ["data"],
                "properties": {
                    "event": {"type": "string"},
                    "id": {"type": "string"},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": schema("Event"),
                    },
                },
            });
            json!({"text/event-stream": {"schema": event}})
        }
        Source::Kmsg => json(json!({"type": "array", "items": {"type": "object"}})),
        Source::OpenApi => json(json!({"type": "object"})),
        Source::Page(_) => json(schema("Page")),
        Source::Ask(_) | Source::Off(_) => json(schema("Answer")),
    }
}

/// What can be answered but 200.
fn problems(route: &Route) -> Vec<(&'static str, &'static str)> {
    let mut problems = vec![("400", "A parameter of the query is not known, or makes no sense.")];
    if !route.is_open() {
        problems.push(("401", "The bearer token is missing or wrong."));
    }
    problems.push(("405", "This API only reads: GET and HEAD."));
    match &route.source {
        Source::Readyz => problems.push(("503", "Not yet.")),
        Source::Kmsg => problems.push(("503", "The kernel log cannot be read; why.")),
        Source::Page(_) => problems.push(("503", "There is no reading; why.")),
        Source::Ask(_) | Source::Off(_) => {
            problems.push(("503", "The node could not be read; why."));
            problems.push(("504", "The reading hangs; since when."));
        }
        _ => {}
    }
    problems
}
