//! A browser without a window, driven over its debugging pipe: messages of JSON (the Chrome DevTools protocol), each ended by
//! a zero byte. That needs no driver, port or library.

use std::env;
use std::io::{BufRead, BufReader, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Set where the absence of a browser is a failure.
const NEEDED: &str = "PEERFS_NEED_BROWSER";
/// Names that it has in packages.
const NAMES: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
/// Longest wait for an answer, or for what is waited for on a page.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program: `$PEERFS_BROWSER`, or what is installed. `None` is told, and a failure where one is needed.
pub fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut installed = NAMES.iter().flat_map(|name| env::split_paths(&path).map(move |folder| folder.join(name)));
    let found = env::var_os("PEERFS_BROWSER").map(PathBuf::from).or_else(|| installed.find(|path| path.is_file()));
    if found.is_none() {
        assert!(env::var_os(NEEDED).is_none(), "no browser is installed: apt-get install chromium-headless-shell");
        // Not by a macro, whose words are kept from people where a test passes.
        let _ =
            writeln!(stderr(), "skipped: no browser is installed (Debian: chromium-headless-shell) or named by $PEERFS_BROWSER");
    }
    found
}

/// A browser with one page.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    /// What the page complained of, to the console or by exceptions.
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts it with an empty page of this size.
    pub fn start(program: &Path, width: u32, height: u32) -> Browser {
        let profile = tempfile::tempdir().expect("a temporary directory");
        // Messages go through descriptors 3 and 4. As root it has no sandbox of its own; the page is ours.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#])
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--hide-scrollbars", "--no-first-run", "--disable-extensions"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let (commands, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in BufReader::new(output).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { break };
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser =
            Browser { child, commands, messages, session: None, last_id: 0, complaints: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", size);
        browser
    }

    /// Calls a method of the protocol; answers its result.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).expect("the browser runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.messages.recv_timeout(left).unwrap_or_else(|_| panic!("the browser does not answer {method}"));
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.complaints.push(parameters["entry"].to_string());
            }
            _ => {}
        }
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "{url}: {}", answer["errorText"]);
    }

    /// The value of an expression on the page; of a promise, what it ends with.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        // In pieces, since a page that is being loaded forgets what it was asked.
        while self.value(&format!("new Promise(done => {{ let left = 20; const look = () => {{ let found = false; \
             try {{ found = !!({expression}); }} catch {{ }} if (found || !left--) done(found); else setTimeout(look, 25); }}; look(); }})"))
            != true
        {
            assert!(Instant::now() < deadline, "the page never has {expression}; it shows {}", self.value("document.body.innerText"));
        }
    }

    /// Clicks the middle of the first element that a selector finds, with the mouse.
    pub fn click(&mut self, selector: &str) {
        let quoted = Value::from(selector).to_string();
        let place = self.value(&format!(
            "(() => {{ const node = document.querySelector({quoted}); node.scrollIntoView({{ block: 'center' }}); \
             const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        ));
        for (kind, buttons) in [("mousePressed", 1), ("mouseReleased", 0)] {
            let event =
                json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "buttons": buttons, "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Types into the element that a selector finds.
    pub fn type_into(&mut self, selector: &str, text: &str) {
        self.click(selector);
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Has the page see a dark or a light scheme.
    pub fn prefer(&mut self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// All of the page as PNG.
    pub fn screenshot(&mut self) -> Vec<u8> {
        self.value("scrollTo(0, 0)");
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        decode_base64(answer["data"].as_str().expect("an image"))
    }

    /// What the page has complained of so far.
    pub fn complaints(&mut self) -> &[String] {
        // Everything that came before the answer has been heard.
        self.value("0");
        &self.complaints
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its children end when it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RFC 4648, 4.
fn decode_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte));
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(text.len()), 0u32, 0);
    for digit in digits {
        bits = bits << 6 | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
