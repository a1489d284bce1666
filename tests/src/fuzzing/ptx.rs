//! The PTX parser and the decoder.

use flashtile_emulator::{Entry, Module};

/// Any bytes as PTX text: an error that says where, or a module each of whose entries decodes or is an error.
pub fn ptx_parse(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.matches('\n').count() as u32 + 1;
    let module = match Module::parse(&text) {
        Ok(module) => module,
        Err(error) => {
            assert!((1..=lines).contains(&error.line), "{error}");
            assert!(!error.message.is_empty());
            return;
        }
    };
    let entries: Vec<&Entry> = module.entries().collect();
    for entry in entries {
        assert_eq!(module.entry(&entry.name), Some(entry));
        let mut end = 0;
        for param in &entry.params {
            assert!(param.offset >= end && param.offset.is_multiple_of(param.align.max(1)));
            end = param.offset + param.size;
        }
        assert_eq!(entry.params_size, end);
        if let Err(error) = module.decode(&entry.name) {
            assert!(error.line <= lines, "{error}");
            assert!(!error.message.is_empty());
        }
    }
}
