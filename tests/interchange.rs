//! The packed symbols of the published implementation, read and written bit for bit.

use flashomni::symbols::interchange::{Interchange, Packed, RequestShape, pack, unpack};
use flashomni::tensor_file::TensorFile;

fn golden(name: &str) -> TensorFile {
    let path = format!("{}/tests/goldens/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    TensorFile::open(path).unwrap()
}

fn packed(bytes: Vec<u8>) -> Packed {
    let indptr = vec![0, i32::try_from(bytes.len()).unwrap()];
    Packed { bytes, indptr }
}

fn check(name: &str) {
    let file = golden(name);
    let [heads, q_blocks, kv_blocks] = *file.shape("mask").unwrap() else { panic!("three axes") };
    let published = Interchange {
        sparse_info: packed(file.values("sparse_info").unwrap()),
        sparse_kv_info: packed(file.values("sparse_kv_info").unwrap()),
    };
    let symbols = unpack(&published, &[RequestShape { heads, q_blocks, kv_blocks }]).unwrap().remove(0);
    let cache_mask: Vec<u8> = file.values_of_shape("cache_mask", &[heads, q_blocks]).unwrap();
    let mask: Vec<u8> = file.values("mask").unwrap();
    for row in 0..heads * q_blocks {
        assert_eq!(symbols.cache.get(row / q_blocks, row % q_blocks), cache_mask[row] == 1, "S_c, row {row}");
        for column in 0..kv_blocks {
            let wanted = mask[row * kv_blocks + column] == 1;
            assert_eq!(symbols.skip.get(row, column), wanted, "S_s, row {row}, column {column}");
        }
    }
    assert_eq!(pack(&[&symbols]).unwrap(), published);
}

#[test]
fn flux_3_heads_of_32_blocks() {
    check("flashomni-flux-a");
}

#[test]
fn flux_4_heads_of_20_blocks() {
    check("flashomni-flux-b");
}
