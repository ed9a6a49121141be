package cleave

import (
	"io"
	"runtime"

	"cleave/go/internal/capi"
)

// Image reads a handle's image: everything that another cache needs to continue the sequence, including its KV. The
// image can be sent over the host's own protocol to [Cache.Import] of a cache with the same secret. It does not change
// while the handle lives. Reads fail with [ErrExpired] once the handle is gone. ReadAt may be called from several
// goroutines at once; Read, WriteTo and Seek share an offset.
type Image struct {
	kv *KV
	io.SectionReader
}

// imagePiece is the number of bytes copied at a time.
const imagePiece = 256 << 10

// imageBytes implements io.ReaderAt for the image. io.SectionReader adds the other methods.
type imageBytes struct{ kv *KV }

// Image returns a reader of the handle's image. Bytes are copied from the device only when they are read. The handle
// stays valid.
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

// WriteTo writes the rest of the image to w.
func (i *Image) WriteTo(w io.Writer) (int64, error) {
	buf := make([]byte, min(imagePiece, i.Size()))
	// The wrapper hides this WriteTo from io.Copy, which would otherwise call it again.
	return io.CopyBuffer(w, struct{ io.Reader }{&i.SectionReader}, buf)
}
