/* The functions of macOS that decode a HEIF, as Apple's headers declare them, for a toy format.
 *
 * After a box "ftyp" a file has a box "mdat" with five bytes: the number of images, the primary one,
 * its orientation or 0 for none, the kind of image and what goes wrong; then width and height as
 * two bytes each, and of each image the pixels, RGBA, of a kind other than 'a' opaque whatever A is.
 * Every object is counted, and what is asked of a wrong or released one counts as a mistake.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef const void *CFTypeRef, *CFAllocatorRef, *CFStringRef, *CFNumberRef, *CFDictionaryRef;
typedef const void *CFDataRef;
typedef void *CGImageSourceRef, *CGImageRef, *CGColorSpaceRef, *CGContextRef;
typedef long CFIndex;
typedef CFIndex CFNumberType;
typedef unsigned char Boolean;
typedef int32_t CGColorSpaceModel;
typedef struct { double x, y; } CGPoint;
typedef struct { double width, height; } CGSize;
typedef struct { CGPoint origin; CGSize size; } CGRect;

enum { HEADER = 24 + 8, FIRST = HEADER + 9 };
enum kind { DATA = 0x7e57, SOURCE, PROPERTIES, NUMBER, IMAGE, SPACE, CONTEXT, POOL, RELEASED };

typedef struct object {
    enum kind kind;
    const uint8_t *file;
    size_t length, index, width, height;
    int64_t values[3];
    uint8_t *pixels;
    const struct object *space;
} object;

atomic_long macos_alive, macos_mistakes, macos_decoded;

static object names[4], wide = {.kind = SPACE}, grey = {.kind = SPACE};
CFStringRef const kCGImagePropertyPixelWidth = &names[0], kCGImagePropertyPixelHeight = &names[1],
                  kCGImagePropertyOrientation = &names[2], kCGColorSpaceSRGB = &names[3];

static object *create(enum kind kind, const object *of) {
    object *made = calloc(1, sizeof *made);
    if (of) *made = *of;
    made->kind = kind;
    macos_alive++;
    return made;
}

static int is(const void *given, enum kind kind) {
    if (given && ((const object *)given)->kind == kind) return 1;
    macos_mistakes++;
    return 0;
}

static void end(void *given) { /* never freed, so that a second time is seen */
    ((object *)given)->kind = RELEASED;
    macos_alive--;
}

void *objc_autoreleasePoolPush(void) { return create(POOL, NULL); }
void objc_autoreleasePoolPop(void *pool) { if (is(pool, POOL)) end(pool); }

void CFRelease(CFTypeRef given) {
    const object *released = given;
    int owned = released && released != &wide && released != &grey && released->kind != POOL;
    if (owned && released->kind >= DATA && released->kind < RELEASED) end((void *)released);
    else macos_mistakes++;
}

CFDataRef CFDataCreate(CFAllocatorRef allocator, const uint8_t *bytes, CFIndex length) {
    object *data = create(DATA, NULL);
    uint8_t *copy = malloc(length + 1);
    macos_mistakes += allocator != NULL;
    data->file = memcpy(copy, bytes, length);
    data->length = length;
    return data;
}

const void *CFDictionaryGetValue(CFDictionaryRef given, const void *key) {
    object *properties = (object *)given;
    if (!is(given, PROPERTIES)) return NULL;
    for (int i = 0; i < 3; i++) {
        if (key != &names[i] || !properties->values[i]) continue;
        object *number = create(NUMBER, NULL);
        macos_alive--; /* it is the dictionary's */
        number->values[0] = properties->values[i];
        return number;
    }
    return NULL;
}

Boolean CFNumberGetValue(CFNumberRef number, CFNumberType type, void *value) {
    macos_mistakes += type != 4; /* kCFNumberSInt64Type */
    if (is(number, NUMBER)) memcpy(value, ((const object *)number)->values, sizeof(int64_t));
    return 1;
}

CGImageSourceRef CGImageSourceCreateWithData(CFDataRef data, CFDictionaryRef options) {
    macos_mistakes += options != NULL;
    if (!is(data, DATA)) return NULL;
    object *source = create(SOURCE, data);
    if (source->length < FIRST || memcmp(source->file + HEADER - 4, "mdat", 4)) source->length = 0;
    return source;
}

size_t CGImageSourceGetCount(CGImageSourceRef source) {
    return is(source, SOURCE) && ((object *)source)->length ? ((object *)source)->file[HEADER] : 0;
}

size_t CGImageSourceGetPrimaryImageIndex(CGImageSourceRef source) {
    return is(source, SOURCE) ? ((object *)source)->file[HEADER + 1] : 0;
}

static object *of_source(CGImageSourceRef given, size_t index, CFDictionaryRef options, int kind) {
    const object *source = given;
    macos_mistakes += options != NULL;
    if (!is(source, SOURCE) || index >= CGImageSourceGetCount(given)) return NULL;
    object *made = create(kind, source);
    const uint8_t *header = source->file + HEADER;
    made->index = index;
    made->width = made->values[0] = header[5] << 8 | header[6];
    made->height = made->values[1] = header[7] << 8 | header[8];
    made->values[2] = header[2];
    return made;
}

CFDictionaryRef CGImageSourceCopyPropertiesAtIndex(CGImageSourceRef source, size_t index,
                                                   CFDictionaryRef options) {
    return of_source(source, index, options, PROPERTIES);
}

CGImageRef CGImageSourceCreateImageAtIndex(CGImageSourceRef source, size_t index,
                                           CFDictionaryRef options) {
    object *image = of_source(source, index, options, IMAGE);
    if (image && image->file[HEADER + 4] == 'i') return CFRelease(image), NULL;
    if (image && image->file[HEADER + 4] == 's') image->width--;
    return image;
}

size_t CGImageGetWidth(CGImageRef image) { return is(image, IMAGE) ? ((object *)image)->width : 0; }
size_t CGImageGetHeight(CGImageRef image) { return is(image, IMAGE) ? ((object *)image)->height : 0; }

CGColorSpaceRef CGImageGetColorSpace(CGImageRef image) {
    if (!is(image, IMAGE) || ((object *)image)->file[HEADER + 3] == 'n') return NULL;
    return ((object *)image)->file[HEADER + 3] == 'g' ? &grey : &wide;
}

CGColorSpaceModel CGColorSpaceGetModel(CGColorSpaceRef space) {
    return is(space, SPACE) && space != &grey; /* Monochrome is 0 and RGB 1 */
}

CGColorSpaceRef CGColorSpaceCreateWithName(CFStringRef name) {
    macos_mistakes += name != kCGColorSpaceSRGB;
    return create(SPACE, NULL);
}

CGContextRef CGBitmapContextCreate(void *data, size_t width, size_t height, size_t bits,
                                   size_t row_bytes, CGColorSpaceRef space, uint32_t info) {
    if (!is(space, SPACE) || space == &grey || width > 1000) return NULL;
    macos_mistakes += !data || bits != 8 || row_bytes != 4 * width || info != (1 | 4 << 12);
    object *context = create(CONTEXT, NULL);
    context->pixels = data;
    context->width = width;
    context->height = height;
    context->space = space;
    return context;
}

void CGContextDrawImage(CGContextRef given, CGRect rect, CGImageRef drawn) {
    const object *image = drawn, *context = given;
    if (!is(image, IMAGE) || !is(context, CONTEXT)) return;
    macos_mistakes += rect.origin.x != 0 || rect.origin.y != 0;
    macos_mistakes += rect.size.width != context->width || rect.size.height != context->height;
    macos_decoded++;
    if (image->file[HEADER + 4] == 'd') return;
    size_t bytes = 4 * image->width * image->height, start = FIRST + image->index * bytes;
    for (size_t i = 0; i < bytes && start + i < image->length; i += 4) {
        const uint8_t *from = image->file + start + i;
        int alpha = image->file[HEADER + 3] == 'a' ? from[3] : 255;
        for (int k = 0; k < 3; k++) { /* another space gives other numbers */
            int value = context->space == &wide ? from[k] : 255 - from[k];
            context->pixels[i + k] = (value * alpha + 127) / 255;
        }
        context->pixels[i + 3] = alpha;
    }
}
