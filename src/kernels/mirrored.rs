//! Structures that kernels take: the same in Rust and in a header of `runtime_kernels/`.
//!
//! The macro states each with its size, which is asserted here as in the header; [`check`] compares names, order and sizes.

/// Name, size, and names and offsets of the fields of a structure.
#[cfg(test)]
pub(super) type Mirrored = (&'static str, usize, &'static [(&'static str, usize)]);

macro_rules! mirrored {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($(#[$about:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
            #[repr(C)]
            pub struct $name {
                $($(#[$about])* pub $field: $type,)*
            }
            const _: () = assert!(size_of::<$name>() == $size);
        )*

        /// Name, size, and names and offsets of the fields of each structure.
        #[cfg(test)]
        const MIRRORED: &[$crate::kernels::mirrored::Mirrored] = &[
            $((stringify!($name), $size, &[$((stringify!($field), std::mem::offset_of!($name, $field))),*])),*
        ];
    };
}
pub(super) use mirrored;

/// The structures of a header: names, and those of their fields.
#[cfg(test)]
pub(super) fn structures(header: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for part in header.split("\nstruct ").skip(1) {
        let (name, rest) = part.split_once(" {").unwrap();
        let body = rest.split_once("\n};").unwrap().0;
        let fields = body.lines().filter_map(|line| {
            let code = line.split("//").next().unwrap().trim().strip_suffix(';')?;
            Some(code.split('[').next()?.rsplit([' ', '*']).next()?.to_owned())
        });
        found.push((name.to_owned(), fields.collect()));
    }
    found
}

/// Compares structures with a header.
#[cfg(test)]
pub(super) fn check(header: &str, mirrored: &[Mirrored]) {
    let structures = structures(header);
    for (name, size, fields) in mirrored {
        let (_, found) = structures.iter().find(|(known, _)| known == name).unwrap();
        let names: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
        assert_eq!(found, &names, "{name}");
        let offsets: Vec<usize> = fields.iter().map(|(_, offset)| *offset).collect();
        assert!(offsets.is_sorted() && offsets.iter().all(|offset| offset < size), "{name}: {offsets:?}");
        let assertion = format!("static_assert(sizeof({name}) == {size}, ");
        assert!(header.contains(&assertion), "{assertion}");
    }
}
