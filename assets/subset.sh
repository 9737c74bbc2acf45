#!/bin/sh
# Makes DejaVuSans-subset.ttf from the package fonts-dejavu-core 2.37; needs `pip install fonttools`.
# Latin-1, punctuation, arrows and the signs of measures; no hinting, which only small bitmaps used.
# The name table keeps copyright and licence (IDs 0 and 13), as the licence asks.
set -eu
cd "$(dirname "$0")"
pyftsubset "${1:-/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf}" \
    --unicodes="U+0020-007E,U+00A0-00FF,U+03BC,U+2013,U+2014,U+2018,U+2019,U+201C,U+201D,U+2026,U+2190-2199,U+2212,U+221E,U+2248,U+2264,U+2265" \
    --no-hinting --notdef-outline --layout-features=kern --drop-tables+=FFTM,DSIG,GDEF,GSUB,MATH \
    --name-IDs=0,1,2,3,4,5,6,13,14 --no-name-legacy --name-languages=0x0409 \
    --output-file=DejaVuSans-subset.ttf
