//! The handshake: bytes in, bytes out, no I/O. Total: any bytes give an answer, a wish for more,
//! or the end of the connection.

use super::{Export, BLOCK_BYTES_PREFERRED, CONTEXT_ID, CONTEXT_NAME, REQUEST_BYTES_MAX};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPTION_HEADER: usize = 16;
/// The longest option, bytes: a name, and some queries.
const OPTION_BYTES_MAX: usize = 8 << 10;
/// All that a handshake may take, bytes.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;
/// The longest name that the protocol allows, bytes.
const NAME_BYTES_MAX: usize = 4096;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUPPORTED: u32 = 0x8000_0001;
const REP_ERR_INVALID: u32 = 0x8000_0003;
const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_BLOCK_SIZE: u16 = 3;

const HAS_FLAGS: u16 = 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const SEND_DF: u16 = 1 << 7;
const CAN_MULTI_CONN: u16 = 1 << 8;
const SEND_CACHE: u16 = 1 << 10;
const SEND_FAST_ZERO: u16 = 1 << 11;

/// The exports of a group.
pub trait Exports {
    /// Their names.
    fn names(&self) -> Vec<String>;
    /// The one with this name, at its size of now.
    fn find(&mut self, name: &str) -> Option<Export>;
}

/// How far a handshake is.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Needs more bytes.
    More,
    /// Requests follow.
    Ready(Agreed),
    /// The client is wrong, or wants to end.
    Close,
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The disk.
    pub export: Export,
    /// Replies may have chunks.
    pub is_structured: bool,
    /// Block status may be asked for.
    pub has_context: bool,
}

/// One connection's handshake.
#[derive(Debug, Default)]
pub struct Handshake {
    has_flags: bool,
    no_zeroes: bool,
    is_structured: bool,
    /// The export that the metadata context was asked for.
    context_of: Option<String>,
    consumed: usize,
    /// Bytes of a refused option still to be skipped.
    skip: usize,
}

enum Bad {
    /// Reply with this and go on.
    Refuse(u32, &'static str),
    /// End the connection.
    Close,
}

impl Handshake {
    /// The server's first bytes.
    pub fn greet(out: &mut Vec<u8>) {
        out.extend_from_slice(&NBD_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    }

    /// Takes what it can of `input`; returns how much that was.
    pub fn feed(
        &mut self,
        input: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> (usize, Step) {
        let mut at = 0;
        loop {
            let (taken, step) = self.take_one(&input[at..], exports, out);
            at += taken;
            self.consumed += taken;
            if self.consumed > HANDSHAKE_BYTES_MAX {
                return (at, Step::Close);
            }
            match step {
                Some(step) => return (at, step),
                None if taken == 0 => return (at, Step::More),
                None => {}
            }
        }
    }

    fn take_one(
        &mut self,
        input: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> (usize, Option<Step>) {
        if self.skip > 0 {
            let taken = self.skip.min(input.len());
            self.skip -= taken;
            return (taken, None);
        }
        if !self.has_flags {
            return self.take_flags(input);
        }
        let mut fields = Fields { rest: input };
        let header = (fields.u64(), fields.u32(), fields.u32());
        let (Some(magic), Some(option), Some(length)) = header else { return (0, None) };
        let length = length as usize;
        if magic != OPTION_MAGIC {
            return (OPTION_HEADER, Some(Step::Close));
        }
        if length > OPTION_BYTES_MAX {
            if length > HANDSHAKE_BYTES_MAX || option == OPT_EXPORT_NAME {
                return (OPTION_HEADER, Some(Step::Close));
            }
            reply(out, option, REP_ERR_TOO_BIG, b"the option is too long");
            self.skip = length;
            return (OPTION_HEADER, None);
        }
        let Some(data) = fields.bytes(length) else { return (0, None) };
        let step = match self.option(option, data, exports, out) {
            Ok(step) => step,
            Err(Bad::Close) => Some(Step::Close),
            Err(Bad::Refuse(code, text)) => {
                reply(out, option, code, text.as_bytes());
                None
            }
        };
        (OPTION_HEADER + length, step)
    }

    fn take_flags(&mut self, input: &[u8]) -> (usize, Option<Step>) {
        let Some(flags) = (Fields { rest: input }).u32() else { return (0, None) };
        let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        if flags & !known != 0 {
            return (4, Some(Step::Close));
        }
        self.has_flags = true;
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        (4, None)
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Option<Step>, Bad> {
        match option {
            OPT_EXPORT_NAME => self.export_name(data, exports, out).map(Some),
            OPT_ABORT => {
                reply(out, option, REP_ACK, &[]);
                Ok(Some(Step::Close))
            }
            OPT_LIST => list(data, exports, out).map(|()| None),
            OPT_INFO | OPT_GO => self.info(option, data, exports, out),
            OPT_STRUCTURED_REPLY => {
                if !data.is_empty() {
                    return Err(Bad::Refuse(REP_ERR_INVALID, "no data is expected"));
                }
                self.is_structured = true;
                reply(out, option, REP_ACK, &[]);
                Ok(None)
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.contexts(option, data, exports, out).map(|()| None)
            }
            _ => Err(Bad::Refuse(REP_ERR_UNSUPPORTED, "the option is not supported")),
        }
    }

    fn transmission_flags(&self) -> u16 {
        let flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES;
        let flags = flags | CAN_MULTI_CONN | SEND_CACHE | SEND_FAST_ZERO;
        if self.is_structured {
            return flags | SEND_DF;
        }
        flags
    }

    fn agreed(&self, name: &str, export: Export) -> Step {
        let has_context = self.context_of.as_deref() == Some(name);
        Step::Ready(Agreed { export, is_structured: self.is_structured, has_context })
    }

    fn export_name(
        &self,
        data: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Step, Bad> {
        // This option has no way to refuse: the connection ends.
        let name = name(data).ok_or(Bad::Close)?;
        let export = exports.find(name).ok_or(Bad::Close)?;
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&self.transmission_flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(self.agreed(name, export))
    }

    fn info(
        &self,
        option: u32,
        data: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Option<Step>, Bad> {
        let bad = || Bad::Refuse(REP_ERR_INVALID, "the lengths contradict each other");
        let mut fields = Fields { rest: data };
        let length = fields.u32().ok_or_else(bad)?;
        let name = name(fields.bytes(length as usize).ok_or_else(bad)?).ok_or_else(bad)?;
        let count = fields.u16().ok_or_else(bad)?;
        let wanted = fields.rest;
        if wanted.len() != 2 * usize::from(count) {
            return Err(bad());
        }
        let export = exports.find(name);
        let export = export.ok_or(Bad::Refuse(REP_ERR_UNKNOWN, "no disk has this name"))?;
        let mut body = INFO_EXPORT.to_be_bytes().to_vec();
        body.extend_from_slice(&export.size.to_be_bytes());
        body.extend_from_slice(&self.transmission_flags().to_be_bytes());
        reply(out, option, REP_INFO, &body);
        if wanted.chunks(2).any(|kind| kind == INFO_NAME.to_be_bytes()) {
            let mut body = INFO_NAME.to_be_bytes().to_vec();
            body.extend_from_slice(name.as_bytes());
            reply(out, option, REP_INFO, &body);
        }
        let mut body = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        let preferred = BLOCK_BYTES_PREFERRED.max(export.block_bytes);
        for size in [export.block_bytes, preferred, REQUEST_BYTES_MAX] {
            body.extend_from_slice(&size.to_be_bytes());
        }
        reply(out, option, REP_INFO, &body);
        reply(out, option, REP_ACK, &[]);
        Ok((option == OPT_GO).then(|| self.agreed(name, export)))
    }

    fn contexts(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(), Bad> {
        let bad = || Bad::Refuse(REP_ERR_INVALID, "the lengths contradict each other");
        let is_set = option == OPT_SET_META_CONTEXT;
        if is_set {
            self.context_of = None;
        }
        if !self.is_structured {
            return Err(Bad::Refuse(REP_ERR_INVALID, "structured replies come first"));
        }
        let mut fields = Fields { rest: data };
        let length = fields.u32().ok_or_else(bad)?;
        let export = name(fields.bytes(length as usize).ok_or_else(bad)?).ok_or_else(bad)?;
        let count = fields.u32().ok_or_else(bad)?;
        let mut is_wanted = count == 0 && !is_set;
        for _ in 0..count {
            let length = fields.u32().ok_or_else(bad)?;
            let query = fields.bytes(length as usize).ok_or_else(bad)?;
            is_wanted |= query == CONTEXT_NAME.as_bytes() || (!is_set && query == b"base:");
        }
        if !fields.rest.is_empty() {
            return Err(bad());
        }
        if exports.find(export).is_none() {
            return Err(Bad::Refuse(REP_ERR_UNKNOWN, "no disk has this name"));
        }
        if is_wanted {
            let id = if is_set { CONTEXT_ID } else { 0 };
            let mut body = id.to_be_bytes().to_vec();
            body.extend_from_slice(CONTEXT_NAME.as_bytes());
            reply(out, option, REP_META_CONTEXT, &body);
        }
        if is_set && is_wanted {
            self.context_of = Some(export.to_owned());
        }
        reply(out, option, REP_ACK, &[]);
        Ok(())
    }
}

fn list(data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Result<(), Bad> {
    if !data.is_empty() {
        return Err(Bad::Refuse(REP_ERR_INVALID, "no data is expected"));
    }
    for name in exports.names() {
        let mut body = (name.len() as u32).to_be_bytes().to_vec();
        body.extend_from_slice(name.as_bytes());
        reply(out, OPT_LIST, REP_SERVER, &body);
    }
    reply(out, OPT_LIST, REP_ACK, &[]);
    Ok(())
}

fn name(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|name| name.len() <= NAME_BYTES_MAX)
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, body: &[u8]) {
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(body);
}

/// Reads big-endian fields from the front.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    struct One;

    impl Exports for One {
        fn names(&self) -> Vec<String> {
            vec!["root".to_owned()]
        }

        fn find(&mut self, name: &str) -> Option<Export> {
            let export = Export { slot: 0, size: 1 << 20, block_bytes: 512 };
            (name == "root").then_some(export)
        }
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn go(name: &str) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&[0, 0]);
        option(OPT_GO, &data)
    }

    fn set_context(name: &str, query: &str) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&1u32.to_be_bytes());
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
        option(OPT_SET_META_CONTEXT, &data)
    }

    fn run(input: &[u8]) -> (Vec<u8>, usize, Step) {
        let (mut handshake, mut out) = (Handshake::default(), Vec::new());
        let (taken, step) = handshake.feed(input, &mut One, &mut out);
        (out, taken, step)
    }

    fn whole_session() -> Vec<u8> {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(option(OPT_STRUCTURED_REPLY, &[]));
        input.extend(option(OPT_LIST, &[]));
        input.extend(set_context("root", CONTEXT_NAME));
        input.extend(go("root"));
        input
    }

    #[test]
    fn a_whole_session_is_agreed_on() {
        let mut input = whole_session();
        input.extend_from_slice(b"requests follow");
        let (_, taken, step) = run(&input);
        let export = Export { slot: 0, size: 1 << 20, block_bytes: 512 };
        let agreed = Agreed { export, is_structured: true, has_context: true };
        assert_eq!(step, Step::Ready(agreed));
        assert_eq!(taken, input.len() - b"requests follow".len());
    }

    #[test]
    fn it_does_not_matter_how_bytes_arrive() {
        let input = whole_session();
        let (expected, _, _) = run(&input);
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let (mut handshake, mut out) = (Handshake::default(), Vec::new());
            let (mut start, mut end) = (0, 0);
            let step = loop {
                end = (end + 1 + random.below(20) as usize).min(input.len());
                let (taken, step) = handshake.feed(&input[start..end], &mut One, &mut out);
                start += taken;
                if step != Step::More {
                    break step;
                }
                assert!(end < input.len() || taken > 0);
            };
            assert!(matches!(step, Step::Ready(_)));
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_and_another_may_follow() {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(go("other"));
        input.extend(go("root"));
        let (out, _, step) = run(&input);
        assert!(matches!(step, Step::Ready(Agreed { has_context: false, .. })));
        assert_eq!(out[12..16], REP_ERR_UNKNOWN.to_be_bytes());
    }

    #[test]
    fn a_context_counts_for_its_export_alone() {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(option(OPT_STRUCTURED_REPLY, &[]));
        input.extend(set_context("root", "base:other"));
        input.extend(go("root"));
        let (_, _, step) = run(&input);
        assert!(matches!(step, Step::Ready(Agreed { has_context: false, .. })));
    }

    #[test]
    fn an_endless_handshake_ends() {
        let mut input = 3u32.to_be_bytes().to_vec();
        for _ in 0..5000 {
            input.extend(option(OPT_LIST, &[]));
        }
        let (_, taken, step) = run(&input);
        assert_eq!(step, Step::Close);
        assert!(taken <= HANDSHAKE_BYTES_MAX + OPTION_HEADER);
    }

    #[test]
    fn a_long_option_is_skipped_and_a_huge_one_ends_it() {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(option(OPT_INFO, &[0; OPTION_BYTES_MAX + 1]));
        input.extend(go("root"));
        assert!(matches!(run(&input).2, Step::Ready(_)));
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(OPTION_MAGIC.to_be_bytes());
        input.extend(OPT_INFO.to_be_bytes());
        input.extend(u32::MAX.to_be_bytes());
        assert_eq!(run(&input).2, Step::Close);
    }

    #[test]
    fn any_bytes_are_survived() {
        for seed in 0..3000 {
            let mut random = Random::new(seed);
            let mut input = whole_session();
            for _ in 0..1 + random.below(6) {
                let at = random.below(input.len() as u64) as usize;
                match random.below(3) {
                    0 => input[at] = random.next() as u8,
                    1 => input.truncate(at.max(1)),
                    _ => input.insert(at, random.next() as u8),
                }
            }
            let (_, taken, _) = run(&input);
            assert!(taken <= input.len());
        }
    }
}
