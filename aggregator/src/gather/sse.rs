//! Server-sent events (WHATWG HTML, 9.2.6), from bytes in any pieces to whole events. Pure.

/// One thing that the stream said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A whole event.
    Event {
        /// Its `id:`, the cursor.
        id: Option<String>,
        /// Its `data:`, lines joined.
        data: Vec<u8>,
    },
    /// An event longer than the bound; its data was thrown away, its cursor kept.
    TooLong {
        /// Its `id:`, where that came before the data.
        id: Option<String>,
    },
    /// A comment: the agent is alive.
    Comment,
}

/// Gathers bytes into events, each of `max_bytes` at most.
pub(crate) struct Parser {
    max_bytes: usize,
    line: Vec<u8>,
    /// The line is longer than the bound: what follows of it is skipped.
    line_too_long: bool,
    data: Vec<u8>,
    has_data: bool,
    too_long: bool,
    id: Option<String>,
}

impl Parser {
    pub(crate) fn new(max_bytes: usize) -> Parser {
        Parser {
            max_bytes,
            line: Vec::new(),
            line_too_long: false,
            data: Vec::new(),
            has_data: false,
            too_long: false,
            id: None,
        }
    }

    /// Takes the next bytes; gives what they completed.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                let mut line = std::mem::take(&mut self.line);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                if std::mem::take(&mut self.line_too_long) {
                    self.too_long = true;
                } else {
                    self.end_of_line(&line, &mut pieces);
                }
                line.clear();
                self.line = line;
            } else if self.line.len() >= self.max_bytes {
                self.line_too_long = true;
            } else {
                self.line.push(byte);
            }
        }
        pieces
    }

    fn end_of_line(&mut self, line: &[u8], pieces: &mut Vec<Piece>) {
        if line.is_empty() {
            let id = self.id.take();
            let data = std::mem::take(&mut self.data);
            let has_data = std::mem::take(&mut self.has_data);
            if std::mem::take(&mut self.too_long) {
                pieces.push(Piece::TooLong { id });
            } else if has_data {
                pieces.push(Piece::Event { id, data });
            }
            return;
        }
        let (field, value) = match line.iter().position(|&byte| byte == b':') {
            Some(0) => return pieces.push(Piece::Comment),
            Some(colon) => {
                let (field, rest) = line.split_at(colon);
                let value = rest.strip_prefix(b":").unwrap_or(rest);
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &[][..]),
        };
        match field {
            b"id" => self.id = std::str::from_utf8(value).ok().map(str::to_owned),
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                if self.data.len() + value.len() > self.max_bytes {
                    self.too_long = true;
                    self.data.clear();
                } else if !self.too_long {
                    self.data.extend_from_slice(value);
                }
            }
            // `event:` repeats what the JSON says; `retry:` and unknown fields are ignored, as the standard asks.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(id: &str, data: &str) -> Piece {
        Piece::Event { id: Some(id.to_owned()), data: data.as_bytes().to_vec() }
    }

    // The standard's own examples (WHATWG HTML, 9.2.6), and the agent's form of an event.
    const STREAM: &str = ": keep-alive\nevent: oom_kill\nid: 1\ndata: {\"a\":1}\n\nid: 2\r\ndata: x\r\ndata:y\r\n\r\n\
                          retry: 5\nnonsense\n\ndata\n\n";

    #[test]
    fn comments_events_and_carriage_returns() {
        let pieces = Parser::new(100).push(STREAM.as_bytes());
        assert_eq!(
            pieces,
            [
                Piece::Comment,
                event("1", "{\"a\":1}"),
                event("2", "x\ny"),
                Piece::Event { id: None, data: Vec::new() }
            ]
        );
    }

    #[test]
    fn half_an_event_is_none() {
        assert_eq!(Parser::new(100).push(b"id: 1\ndata: {\"a\":"), []);
    }

    #[test]
    fn an_event_past_the_bound_costs_only_itself() {
        for data in [format!("data: {}\n", "x".repeat(5000)), "data: 0123456789\n".repeat(500)] {
            let mut parser = Parser::new(1000);
            let pieces = parser.push(format!("id: 7\n{data}\nid: 8\ndata: ok\n\n").as_bytes());
            assert_eq!(pieces, [Piece::TooLong { id: Some("7".to_owned()) }, event("8", "ok")]);
            assert!(parser.data.capacity() < 10_000 && parser.line.capacity() < 10_000);
        }
    }

    proptest! {
        #[test]
        fn cutting_the_stream_anywhere_changes_nothing(cuts in proptest::collection::vec(0..STREAM.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut parser = Parser::new(100);
            let pieces: Vec<Piece> = cuts
                .windows(2)
                .flat_map(|pair| parser.push(&STREAM.as_bytes()[pair[0]..pair[1]]))
                .collect();
            prop_assert_eq!(pieces, Parser::new(100).push(STREAM.as_bytes()));
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            for piece in Parser::new(20).push(&bytes) {
                if let Piece::Event { data, .. } = piece {
                    prop_assert!(data.len() <= 20);
                }
            }
        }
    }
}
