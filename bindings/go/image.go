package cleave

import (
	"io"
	"runtime"

	"cleave/go/internal/capi"
)

// Image reads everything that another cache needs to continue a handle, the KV itself included: for a wire of the
// host's own, for [Cache.Import] of a cache with the same secret. It does not change while the handle lives, and reads
// of one that is gone fail with [ErrExpired]. ReadAt may be called from several goroutines at once; Read, WriteTo and
// Seek share an offset.
type Image struct {
	kv *KV
	io.SectionReader
}

// imagePiece is how much is copied at a time.
const imagePiece = 256 << 10

// imageBytes is the image as an io.ReaderAt, for io.SectionReader to do the rest.
type imageBytes struct{ kv *KV }

// Image returns the handle's image, which reads it from the device as it is read itself. The handle lives on.
func (kv *KV) Image() (*Image, error) {
	info, err := kv.Info()
	if err != nil {
		return nil, err
	}
	return &Image{kv, *io.NewSectionReader(imageBytes{kv}, 0, info.ImageBytes)}, nil
}

func (b imageBytes) ReadAt(buf []byte, offset int64) (int, error) {
	defer runtime.KeepAlive(b.kv)
	read := 0
	for read < len(buf) {
		n, e := capi.KVReadImage(b.kv.cache.name, b.kv.id, uint64(offset)+uint64(read), buf[read:])
		if e != nil {
			return read, b.kv.wrap(e)
		}
		if n == 0 {
			return read, io.EOF
		}
		read += n
	}
	return read, nil
}

// WriteTo writes what is left of the image to w.
func (i *Image) WriteTo(w io.Writer) (int64, error) {
	buf := make([]byte, min(imagePiece, i.Size()))
	// Without this method, or the copy would ask for it again.
	return io.CopyBuffer(w, struct{ io.Reader }{&i.SectionReader}, buf)
}
