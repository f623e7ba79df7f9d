/* What FFCV's pull request 391 proposes: decode the lines of the crop alone, and of those the columns of the crop.
   libjpeg-turbo still has to read the entropy-coded data of everything above it. */

#include <stdio.h>

#include <jpeglib.h>

/* Decode rows [top, top + height) and columns [left, left + width), or a few more columns, as RGB into `out`, which has
   room for `height` rows of `width` + 64 pixels. Sets `first` to the first column that is there. Returns the columns. */
int decode_region(const unsigned char *jpeg, unsigned long size, int top, int left, int height, int width,
                  unsigned char *out, int *first)
{
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    JDIMENSION x = left, columns = width;
    info.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, jpeg, size);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    info.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info);
    jpeg_crop_scanline(&info, &x, &columns);
    jpeg_skip_scanlines(&info, top);
    for (int row = 0; row < height; row++) {
        JSAMPROW line = out + 3L * columns * row;
        jpeg_read_scanlines(&info, &line, 1);
    }
    jpeg_destroy_decompress(&info);
    *first = (int)x;
    return (int)columns;
}
