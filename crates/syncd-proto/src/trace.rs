//! Which trace a piece of work belongs to, on the wire.

use bytes::BufMut;
use commonware_codec::{Buf, Error as CodecError, FixedSize, Read, ReadExt as _, Write};

/// The W3C context of a span, without the vendors' state: 25 bytes on the wire.
///
/// A context that a peer sent names its trace and nothing else: it decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Identifier of the trace.
    pub trace: [u8; 16],
    /// Identifier of the span.
    pub span: [u8; 8],
    /// Flags; the lowest bit says whether the trace is recorded.
    pub flags: u8,
}

impl Write for TraceContext {
    fn write(&self, buf: &mut impl BufMut) {
        self.trace.write(buf);
        self.span.write(buf);
        self.flags.write(buf);
    }
}

impl FixedSize for TraceContext {
    const SIZE: usize = 25;
}

impl Read for TraceContext {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self {
            trace: <[u8; 16]>::read(buf)?,
            span: <[u8; 8]>::read(buf)?,
            flags: u8::read(buf)?,
        })
    }
}
