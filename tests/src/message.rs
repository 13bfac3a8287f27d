//! Messages as a test sees them: read leniently and independently of the gateway's own codec.

/// The start line and the fields of a request or an answer.
#[derive(Debug, Clone)]
pub struct Head {
    /// Without its CR LF.
    pub start: String,
    /// In order, names as they were sent, values trimmed.
    pub fields: Vec<(String, String)>,
    /// As received, the empty line included.
    pub raw: Vec<u8>,
}

/// A whole request or answer.
#[derive(Debug, Clone)]
pub struct Message {
    pub head: Head,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The sizes of the chunks that the body came in; empty where it was not chunked.
    pub chunks: Vec<usize>,
}

impl Head {
    /// # Panics
    /// Where this is not a head.
    #[track_caller]
    pub fn parse(raw: &[u8]) -> Self {
        let text = String::from_utf8_lossy(raw).into_owned();
        let mut lines = text.strip_suffix("\r\n\r\n").expect("a head ends with an empty line").split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        Self { start, fields: lines.map(field).collect(), raw: raw.to_vec() }
    }

    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// All values of a field.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let fields = self.fields.iter().filter(move |(have, _)| have.eq_ignore_ascii_case(name));
        fields.map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn word(&self, index: usize) -> &str {
        self.start.split(' ').nth(index).unwrap_or_default()
    }

    /// Of a request.
    pub fn method(&self) -> &str {
        self.word(0)
    }

    /// Of a request.
    pub fn target(&self) -> &str {
        self.word(1)
    }

    /// Of an answer.
    ///
    /// # Panics
    /// Where this is not an answer.
    #[track_caller]
    pub fn status(&self) -> u16 {
        assert!(self.start.starts_with("HTTP/1."), "not a status line: {:?}", self.start);
        self.word(1).parse().unwrap_or_else(|_| panic!("not a status line: {:?}", self.start))
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.get("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    pub(crate) fn length(&self) -> Option<usize> {
        self.get("content-length").map(|value| value.parse().expect("a Content-Length of digits"))
    }
}

impl std::ops::Deref for Message {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}

impl Message {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Panics
    /// Where the body is not JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }
}

/// One line of a head or of a trailer section.
pub(crate) fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_owned(), value.trim().to_owned())
}
