//! Which addresses may ask.

use std::sync::Arc;

use ipnet::IpNet;
use ringway_core::access::IpList;

use crate::decode::{Cx, OneOrMore, Spanned};
use crate::shape::shape;

shape! {
    /// Which client addresses may ask; 403 for others. One of the two at least. Where both say something, `deny` wins.
    pub(crate) struct IpSection {
        /// Networks or addresses that may ask. Without it: all.
        allow: Option<OneOrMore<IpNet>>,
        /// Networks or addresses that may not.
        deny: Option<OneOrMore<IpNet>>,
    }
}

impl Spanned<IpSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Arc<IpList>> {
        let networks = |list: &Option<OneOrMore<IpNet>>| list.as_ref().map(|list| list.0.clone()).unwrap_or_default();
        let (allow, deny) = (networks(&self.value.allow), networks(&self.value.deny));
        if allow.is_empty() && deny.is_empty() {
            cx.error(self.span, "`ip` has neither `allow` nor `deny`", "such as `{ allow: [10.0.0.0/8] }`");
            return None;
        }
        Some(Arc::new(IpList::new(&allow, &deny)))
    }
}
