//! Listeners that send clients to https.

use crate::decode::{Cx, Spanned};
use crate::scalar::Int;
use crate::shape::shape;
use crate::snapshot;

shape! {
    /// Every request is answered with a redirect to https: the same host, path and query.
    pub(crate) struct RedirectToHttpsSection {
        /// The port of https that clients see.
        port: Int<1, 65_535> = "443",
        /// 301, 302, 307 or 308; the last two keep the method.
        status: Spanned<Int<301, 308>> = "308",
        /// Prefixes of paths that are routed as ever, such as `/.well-known/acme-challenge/`.
        except: Vec<Spanned<String>> = "[]",
    }
}

impl RedirectToHttpsSection {
    pub(crate) fn compile(self, cx: &mut Cx) -> snapshot::RedirectToHttps {
        let status = self.status.value.0 as u16;
        if !matches!(status, 301 | 302 | 307 | 308) {
            let message = format!("`{status}` does not redirect every request");
            cx.error(self.status.span, message, "one of 301, 302, 307 and 308");
        }
        for prefix in &self.except {
            if !prefix.value.starts_with('/') {
                cx.error(prefix.span, format!("`{}` is no path", prefix.value), "a path begins with `/`");
            }
        }
        let except = self.except.into_iter().map(|prefix| prefix.value.into_boxed_str()).collect();
        snapshot::RedirectToHttps { port: self.port.0 as u16, status, except }
    }
}
