//! q, k and v from a safetensors file that may be anything, and their scales.

mod scales;

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use flashtile::{DType, Inputs, Problem, Scales, TensorLayout};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use scales::ScaleTensor;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::{
    failure::{Failure, Result},
    memory,
};

/// Most bytes of a header; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Tensors that later features will read. To ignore them would give wrong results.
const NOT_YET: [&str; 8] = [
    "bias",
    "mask",
    "alibi",
    "sink",
    "seqlens_k",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "block_table",
];

/// The tensors, and the dimensions they must have.
const TENSORS: [(&str, &str); 3] = [
    ("q", "[batch, seqlen_q, heads_q, head_dim_qk]"),
    ("k", "[batch, seqlen_k, heads_kv, head_dim_qk]"),
    ("v", "[batch, seqlen_k, heads_kv, head_dim_v]"),
];

/// A file, or anything else to read from, whose header is read and found good.
#[derive(Debug)]
pub struct Source<R = File> {
    file: R,
    dtype: DType,
    tensors: [Tensor; 3],
    scales: [Option<ScaleTensor>; 3],
}

/// A tensor of its file.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    shape: [usize; 4],
    data: Span,
}

/// Where a tensor's bytes are in its file.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: &'static str,
    begin: u64,
    bytes: usize,
}

impl Span {
    fn new(name: &'static str, info: &TensorInfo, data_begin: u64) -> Self {
        let (begin, end) = info.data_offsets;
        Self {
            name,
            begin: data_begin.saturating_add(begin as u64),
            bytes: end.saturating_sub(begin),
        }
    }

    /// Reads the bytes.
    fn read(&self, file: &mut (impl Read + Seek)) -> Result<Vec<u8>> {
        let failed = |found: String| {
            let expected = format!("{} readable bytes", self.bytes);
            Failure::bad(self.name, expected, found)
        };
        let mut content = memory::vector(self.name, self.bytes)?;
        file.seek(SeekFrom::Start(self.begin))
            .and_then(|_| {
                let file = Read::by_ref(file);
                file.take(self.bytes as u64).read_to_end(&mut content)
            })
            .map_err(|error| failed(error.to_string()))?;
        match content.len() == self.bytes {
            true => Ok(content),
            false => Err(failed(content.len().to_string())),
        }
    }
}

/// A file's tensors.
#[derive(Debug)]
pub struct Contents {
    tensors: [Vec<u8>; 3],
    scales: [Vec<f32>; 3],
}

impl Contents {
    /// As the library takes them.
    pub fn inputs(&self) -> Inputs<'_> {
        let ([q, k, v], [q_scale, k_scale, v_scale]) = (&self.tensors, &self.scales);
        Inputs {
            q,
            k,
            v,
            q_scale,
            k_scale,
            v_scale,
        }
    }
}

impl Source {
    /// Opens a file and reads its header; no tensor yet.
    ///
    /// # Errors
    /// The file can't be read, or is not what [`Source::new`] takes.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |expected: &str, found: String| Failure::bad(path.display(), expected, found);
        let unreadable = |error: std::io::Error| bad("a file that can be read", error.to_string());
        // Opening a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(unreadable)?;
        if !kind.is_file() {
            return Err(bad("a regular file", "a folder, device or pipe".into()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        Self::new(file, length, path.display())
    }
}

impl<R: Read + Seek> Source<R> {
    /// Reads the header of a safetensors file of so many bytes; `name` is for messages.
    ///
    /// # Errors
    /// It is no safetensors file, not whole, or has no q, k and v that go together.
    pub fn new(mut file: R, length: u64, name: impl fmt::Display) -> Result<Self> {
        let bad = |expected: &str, found: String| Failure::bad(&name, expected, found);
        let unreadable = |error: std::io::Error| bad("a file that can be read", error.to_string());
        let mut word = [0; 8];
        file.read_exact(&mut word).map_err(|_| {
            bad(
                "a safetensors file, which begins with the 8-byte size of its header",
                format!("{length} bytes"),
            )
        })?;
        let header = u64::from_le_bytes(word);
        let data_begin = header.checked_add(8);
        let Some(data_begin) = data_begin.filter(|&end| end <= length && header <= MAX_HEADER)
        else {
            let expected =
                "a safetensors file, with a header of at most 100000000 bytes inside the file";
            return Err(bad(
                expected,
                format!("a header of {header} bytes in a file of {length}"),
            ));
        };
        let mut text = memory::vector("header", header as usize)?;
        let read = Read::by_ref(&mut file).take(header).read_to_end(&mut text);
        if read.map_err(unreadable)? as u64 != header {
            return Err(bad("a whole header", "the end of the file".into()));
        }
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| {
            explain(&text).unwrap_or_else(|| bad("a safetensors header", error.to_string()))
        })?;
        if let Some(name) = repeated_name(&text) {
            return Err(Failure::bad(name, "one tensor of this name", "several"));
        }
        let data = length - data_begin;
        if metadata.data_len() as u64 != data {
            return Err(bad(
                &format!("{} bytes of tensors after the header", metadata.data_len()),
                format!("{data}"),
            ));
        }
        let (dtype, tensors) = tensors(&metadata, data_begin)?;
        let scales = scales::find(&metadata, data_begin)?;
        Ok(Self {
            file,
            dtype,
            tensors,
            scales,
        })
    }

    /// Unmasked attention over these tensors, not yet checked. Scales by blocks are of so many rows; `None` is the default.
    ///
    /// # Errors
    /// Rows of blocks are given, but no scales are by blocks.
    pub fn problem(&self, scale_block: Option<u32>) -> Result<Problem> {
        let [q, k, v] = self.tensors.map(|t| TensorLayout::contiguous(t.shape));
        let [batch, seqlen, heads, _] = q.shape;
        let out = TensorLayout::contiguous([batch, seqlen, heads, v.shape[3]]);
        let [q_scale, k_scale, v_scale] = scales::layouts(&self.scales, scale_block)?;
        let problem = Problem::new(self.dtype, q, k, v, out);
        Ok(problem.scales(Scales {
            q: q_scale,
            k: k_scale,
            v: v_scale,
        }))
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let scales = self.scales.iter().flatten().map(|scales| scales.data);
        let all = self.tensors.iter().map(|t| t.data).chain(scales);
        all.map(|data| data.bytes as u64).sum()
    }

    /// Refuses scales whose shape is not that of the problem's.
    ///
    /// # Errors
    /// It names the shapes that there may be.
    pub fn check_scales(&self, problem: &Problem) -> Result<()> {
        scales::check(&self.scales, problem)
    }

    /// Reads q, k, v and their scales.
    ///
    /// # Errors
    /// The file got shorter, can't be read, or a tensor does not fit in memory.
    pub fn read(mut self) -> Result<Contents> {
        let mut contents = Contents {
            tensors: [const { Vec::new() }; 3],
            scales: [const { Vec::new() }; 3],
        };
        for (content, tensor) in contents.tensors.iter_mut().zip(self.tensors) {
            *content = tensor.data.read(&mut self.file)?;
        }
        for (content, scales) in contents.scales.iter_mut().zip(&self.scales) {
            if let Some(scales) = scales {
                let bytes = scales.data.read(&mut self.file)?;
                let (words, _) = bytes.as_chunks::<4>();
                *content = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
            }
        }
        Ok(contents)
    }
}

fn tensors(metadata: &Metadata, data_begin: u64) -> Result<(DType, [Tensor; 3])> {
    if let Some(name) = NOT_YET.iter().find(|name| metadata.info(name).is_some()) {
        return Err(Failure::bad(
            name,
            "a file without this tensor",
            "one, which this release does not support yet",
        ));
    }
    let mut found: Vec<(Tensor, Dtype)> = Vec::new();
    for (name, dims) in TENSORS {
        let Some(info) = metadata.info(name) else {
            let mut names = metadata.offset_keys();
            names.truncate(8);
            let names = match names.is_empty() {
                true => "no tensors".into(),
                false => names.join(", "),
            };
            return Err(Failure::bad(name, format!("a tensor {dims}"), names));
        };
        let shape: [usize; 4] = info.shape.as_slice().try_into().map_err(|_| {
            Failure::bad(
                name,
                format!("4 dimensions {dims}"),
                format!("shape {:?}", info.shape),
            )
        })?;
        let tensor = Tensor {
            shape,
            data: Span::new(name, info, data_begin),
        };
        found.push((tensor, info.dtype));
    }
    let dtypes: Vec<_> = found.iter().map(|(_, dtype)| *dtype).collect();
    let dtype = dtype("q", dtypes[0])?;
    for (tensor, other) in &found[1..] {
        if *other != dtypes[0] {
            return Err(Failure::bad(
                tensor.data.name,
                format!("{:?}, the dtype of q", dtypes[0]),
                format!("{other:?}"),
            ));
        }
    }
    match found.as_slice() {
        &[(q, _), (k, _), (v, _)] => Ok((dtype, [q, k, v])),
        // Three names give three tensors.
        _ => Err(Failure::bad("file", "q, k and v", "fewer")),
    }
}

fn dtype(name: &str, dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::Bf16),
        Dtype::F32 => Ok(DType::F32),
        Dtype::F8_E4M3 => Ok(DType::E4m3),
        other => Err(Failure::bad(
            name,
            "F16, BF16, F32 or F8_E4M3",
            format!("{other:?}"),
        )),
    }
}

/// A name that a header has more than once. The format forbids it, and parsers differ in which one they take.
fn repeated_name(header: &[u8]) -> Option<String> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            let mut repeated = None;
            while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                if !seen.contains(&name) {
                    seen.insert(name);
                } else {
                    repeated.get_or_insert(name);
                }
            }
            Ok(repeated)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(header);
    json.deserialize_map(Names).ok().flatten()
}

/// The first tensor of a header that is not what a safetensors header may say of a tensor.
fn explain(header: &[u8]) -> Option<Failure> {
    let entries: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let mut infos: Vec<(String, TensorInfo)> = Vec::new();
    for (name, value) in entries {
        if name == "__metadata__" {
            continue;
        }
        match serde_json::from_value(value) {
            Ok(info) => infos.push((name, info)),
            Err(error) => {
                return Some(Failure::bad(name, "dtype, shape and data_offsets", error));
            }
        }
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut next = 0;
    for (name, info) in infos {
        let (begin, end) = info.data_offsets;
        let elements = info
            .shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let Some(bits) = bits else {
            let found = format!("shape {:?}", info.shape);
            return Some(Failure::bad(name, "a size that fits in 64 bits", found));
        };
        if begin != next || end < begin {
            return Some(Failure::bad(
                name,
                format!("data that begins at {next}, after the tensor before it"),
                format!("data_offsets [{begin}, {end}]"),
            ));
        }
        if bits % 8 != 0 || end - begin != bits / 8 {
            return Some(Failure::bad(
                name,
                format!("{} bytes for {:?} {:?}", bits / 8, info.dtype, info.shape),
                format!("data_offsets [{begin}, {end}]"),
            ));
        }
        next = end;
    }
    None
}
