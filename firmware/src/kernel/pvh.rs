//! The x86-64 kernel as an ELF file that QEMU boots directly (PVH).
//!
//! libkrunfw holds a flat image for the physical address 16 MiB. QEMU's `-kernel` takes it when an
//! ELF file says so: one PT_LOAD segment with the image, and one PT_NOTE segment with the note
//! XEN_ELFNOTE_PHYS32_ENTRY, which names the 32-bit entry. The image holds that note already; it
//! is found there, so that the entry is never a guess.

use memchr::memmem;

use super::extract::KernelError;

/// Where libkrunfw links its x86-64 kernel.
const LOAD_ADDRESS: u64 = 0x100_0000;
/// The image begins here in the file: on a page, so that a VMM can map it.
const IMAGE_OFFSET: u64 = 0x1000;

const ELF_HEADER_SIZE: u16 = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;
const NOTE_OFFSET: u64 = ELF_HEADER_SIZE as u64 + 2 * PROGRAM_HEADER_SIZE as u64;

const NOTE_NAME: &[u8; 4] = b"Xen\0";
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Finds the entry that the note in `image` names.
fn entry(image: &[u8]) -> Result<u32, KernelError> {
    let end = LOAD_ADDRESS + image.len() as u64;
    for size in [4_u32, 8] {
        let mut header = Vec::with_capacity(16);
        header.extend_from_slice(&4_u32.to_le_bytes());
        header.extend_from_slice(&size.to_le_bytes());
        header.extend_from_slice(&XEN_ELFNOTE_PHYS32_ENTRY.to_le_bytes());
        header.extend_from_slice(NOTE_NAME);
        for at in memmem::find_iter(image, &header) {
            let Some(descriptor) = image.get(at + 16..at + 16 + size as usize) else {
                continue;
            };
            let mut wide = [0; 8];
            wide[..descriptor.len()].copy_from_slice(descriptor);
            let address = u64::from_le_bytes(wide);
            if let (true, Ok(entry)) = (
                (LOAD_ADDRESS..end).contains(&address),
                u32::try_from(address),
            ) {
                return Ok(entry);
            }
        }
    }
    Err(KernelError::PvhNote)
}

/// What goes before the image: the ELF header, both program headers, the note, and padding.
pub(super) fn header(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    const ET_EXEC: u16 = 2;
    const EM_X86_64: u16 = 62;
    const PT_LOAD: u32 = 1;
    const PT_NOTE: u32 = 4;
    const READ_WRITE_EXECUTE: u32 = 7;
    const READ: u32 = 4;

    let entry = entry(image)?;
    let image_size = image.len() as u64;
    let mut note = Vec::with_capacity(20);
    for field in [4_u32, 4, XEN_ELFNOTE_PHYS32_ENTRY] {
        note.extend_from_slice(&field.to_le_bytes());
    }
    note.extend_from_slice(NOTE_NAME);
    note.extend_from_slice(&entry.to_le_bytes());
    let note_size = note.len() as u64;

    let mut out = Vec::with_capacity(IMAGE_OFFSET as usize);
    // 64-bit, little-endian, version 1, no particular ABI.
    out.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend_from_slice(&ET_EXEC.to_le_bytes());
    out.extend_from_slice(&EM_X86_64.to_le_bytes());
    out.extend_from_slice(&1_u32.to_le_bytes());
    // e_entry is the 64-bit entry, which a PVH loader does not use; the image starts with code.
    out.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());
    out.extend_from_slice(&u64::from(ELF_HEADER_SIZE).to_le_bytes());
    out.extend_from_slice(&0_u64.to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    // e_ehsize e_phentsize e_phnum e_shentsize e_shnum e_shstrndx
    for field in [ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE, 2, 0, 0, 0] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    let program_header = |out: &mut Vec<u8>, kind: u32, flags: u32, rest: [u64; 6]| {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        for field in rest {
            out.extend_from_slice(&field.to_le_bytes());
        }
    };
    // p_offset p_vaddr p_paddr p_filesz p_memsz p_align
    let load = [
        IMAGE_OFFSET,
        LOAD_ADDRESS,
        LOAD_ADDRESS,
        image_size,
        image_size,
        0x1000,
    ];
    program_header(&mut out, PT_LOAD, READ_WRITE_EXECUTE, load);
    program_header(
        &mut out,
        PT_NOTE,
        READ,
        [NOTE_OFFSET, 0, 0, note_size, note_size, 4],
    );
    out.extend_from_slice(&note);
    out.resize(IMAGE_OFFSET as usize, 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectKind, ObjectSegment as _};

    use super::*;

    fn image(note: &[u32]) -> Vec<u8> {
        let mut image = vec![0x90; 0x2000];
        let bytes: Vec<u8> = note.iter().flat_map(|field| field.to_le_bytes()).collect();
        image[0x1234..0x1234 + bytes.len()].copy_from_slice(&bytes);
        image
    }

    const XEN: u32 = u32::from_le_bytes(*NOTE_NAME);

    #[test]
    fn golden_bytes() {
        let header = header(&image(&[4, 8, 18, XEN, 0x100_0123, 0])).expect("has a note");
        let words: Vec<String> = header[..196]
            .chunks(4)
            .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        let expected = "7f454c46 02010100 00000000 00000000 02003e00 01000000 00000001 00000000 \
            40000000 00000000 00000000 00000000 00000000 40003800 02000000 00000000 \
            01000000 07000000 00100000 00000000 00000001 00000000 00000001 00000000 \
            00200000 00000000 00200000 00000000 00100000 00000000 \
            04000000 04000000 b0000000 00000000 00000000 00000000 00000000 00000000 \
            14000000 00000000 14000000 00000000 04000000 00000000 \
            04000000 04000000 12000000 58656e00 23010001";
        assert_eq!(words.join(" "), expected);
        assert_eq!(header.len(), 0x1000);
    }

    #[test]
    fn an_independent_reader_agrees() {
        let image = image(&[4, 4, 18, XEN, 0x100_0000]);
        let bytes = [header(&image).expect("has a note"), image.clone()].concat();
        let file = object::File::parse(&*bytes).expect("an ELF file");
        assert_eq!(file.kind(), ObjectKind::Executable);
        let segment = file.segments().next().expect("one");
        assert_eq!(segment.address(), LOAD_ADDRESS);
        assert_eq!(segment.data().expect("in the file"), image);
    }

    #[test]
    fn a_kernel_without_a_sound_note_is_refused() {
        for note in [
            &[][..],
            // PHYS32_RELOC only
            &[4, 8, 19, XEN, 0x100_0000, 0],
            // an entry outside of the image
            &[4, 8, 18, XEN, 0x100_2000, 0],
            &[4, 8, 18, XEN, 0x100_0000, 1],
            &[4, 4, 18, XEN, 0],
        ] {
            assert!(
                matches!(header(&image(note)), Err(KernelError::PvhNote)),
                "{note:x?}"
            );
        }
        let mut cut = vec![0; 20];
        cut[4..].copy_from_slice(&image(&[4, 8, 18, XEN])[0x1234..0x1244]);
        assert!(matches!(header(&cut), Err(KernelError::PvhNote)));
    }
}
