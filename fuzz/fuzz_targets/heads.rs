#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| agent_shim_fuzz::check("heads", input));
