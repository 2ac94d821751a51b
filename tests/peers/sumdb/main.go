// Reads a log of Cloister with Go's own transparency-log library, which shares no code with it: the
// checkpoint is opened by `note`, the inclusion of every record and the consistency with older
// checkpoints are checked by `tlog`. Tiles are found by the paths of C2SP tlog-tiles, which are not
// those of `tlog`.
//
// Usage: main LOG VKEY-FILE OLD-CHECKPOINT…, or main -note NOTE VKEY-FILE…: a note that all of these keys
// signed, and no other, is opened by each alone and by all together.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileWidth = 256

type checkpoint struct {
	size int64
	root tlog.Hash
}

func readVerifier(path string) (note.Verifier, error) {
	vkey, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(strings.TrimSpace(string(vkey)))
}

func openNote(path string, vkeys []string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var all []note.Verifier
	for _, vkey := range vkeys {
		verifier, err := readVerifier(vkey)
		if err != nil {
			return err
		}
		opened, err := note.Open(text, note.VerifierList(verifier))
		if err != nil {
			return fmt.Errorf("%s: %w", vkey, err)
		}
		if len(opened.Sigs) != 1 || len(opened.UnverifiedSigs) != len(vkeys)-1 {
			return fmt.Errorf("%s: %d signatures, %d of others", vkey, len(opened.Sigs), len(opened.UnverifiedSigs))
		}
		all = append(all, verifier)
	}
	opened, err := note.Open(text, note.VerifierList(all...))
	if err != nil {
		return err
	}
	if len(opened.Sigs) != len(vkeys) || len(opened.UnverifiedSigs) != 0 {
		return fmt.Errorf("%d signatures, %d of others", len(opened.Sigs), len(opened.UnverifiedSigs))
	}
	fmt.Printf("opened by each of %d keys and by all\n", len(vkeys))
	return nil
}

func openCheckpoint(path string, verifier note.Verifier) (checkpoint, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return checkpoint{}, err
	}
	opened, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		return checkpoint{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() || lines[3] != "" {
		return checkpoint{}, errors.New("not origin, size and root")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return checkpoint{}, err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return checkpoint{}, errors.New("the root is no hash")
	}
	return checkpoint{size, tlog.Hash(*(*[tlog.HashSize]byte)(root))}, nil
}

// The log's folder at one size.
type log struct {
	folder string
	size   int64
	tiles  map[string][]byte
	nodes  map[[2]int64]tlog.Hash
}

func (l *log) tile(kind string, index, width int64) ([]byte, error) {
	path := fmt.Sprintf("%03d", index%1000)
	for rest := index / 1000; rest > 0; rest /= 1000 {
		path = fmt.Sprintf("x%03d/%s", rest%1000, path)
	}
	if width < tileWidth {
		path = fmt.Sprintf("%s.p/%d", path, width)
	}
	path = filepath.Join(l.folder, "tile", kind, path)
	if bytes, found := l.tiles[path]; found {
		return bytes, nil
	}
	bytes, err := os.ReadFile(path)
	l.tiles[path] = bytes
	return bytes, err
}

// width is how many items tile `index` has of `count` in its level.
func width(count, index int64) int64 {
	if rest := count - index*tileWidth; rest < tileWidth {
		return rest
	}
	return tileWidth
}

// node is the hash at a level of the binary tree, from the tile that holds its subtree.
func (l *log) node(level int, index int64) (tlog.Hash, error) {
	key := [2]int64{int64(level), index}
	if hash, found := l.nodes[key]; found {
		return hash, nil
	}
	var hash tlog.Hash
	if level%8 != 0 {
		left, err := l.node(level-1, 2*index)
		if err != nil {
			return hash, err
		}
		right, err := l.node(level-1, 2*index+1)
		if err != nil {
			return hash, err
		}
		hash = tlog.NodeHash(left, right)
	} else {
		tile, count := index/tileWidth, l.size>>level
		bytes, err := l.tile(strconv.Itoa(level/8), tile, width(count, tile))
		if err != nil {
			return hash, err
		}
		at := index % tileWidth * tlog.HashSize
		if int64(len(bytes)) < at+tlog.HashSize {
			return hash, errors.New("a tile is too short")
		}
		copy(hash[:], bytes[at:])
	}
	l.nodes[key] = hash
	return hash, nil
}

func (l *log) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		hash, err := l.node(level, n)
		if err != nil {
			return nil, err
		}
		hashes[i] = hash
	}
	return hashes, nil
}

func (l *log) record(index int64) ([]byte, error) {
	bundle := index / tileWidth
	rest, err := l.tile("entries", bundle, width(l.size, bundle))
	if err != nil {
		return nil, err
	}
	for at := bundle * tileWidth; len(rest) >= 2; at++ {
		length := int(binary.BigEndian.Uint16(rest))
		if len(rest) < 2+length {
			break
		}
		if at == index {
			return rest[2 : 2+length], nil
		}
		rest = rest[2+length:]
	}
	return nil, errors.New("no such record")
}

func run(arguments []string) error {
	if len(arguments) > 2 && arguments[0] == "-note" {
		return openNote(arguments[1], arguments[2:])
	}
	if len(arguments) < 2 {
		return errors.New("usage: main LOG VKEY-FILE OLD-CHECKPOINT…, or main -note NOTE VKEY-FILE…")
	}
	verifier, err := readVerifier(arguments[1])
	if err != nil {
		return err
	}
	signed, err := openCheckpoint(filepath.Join(arguments[0], "checkpoint"), verifier)
	if err != nil {
		return err
	}
	l := &log{arguments[0], signed.size, map[string][]byte{}, map[[2]int64]tlog.Hash{}}
	if root, err := tlog.TreeHash(signed.size, l); err != nil || root != signed.root {
		return fmt.Errorf("the tree is not the signed one: %v", err)
	}
	for index := int64(0); index < signed.size; index++ {
		record, err := l.record(index)
		if err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		proof, err := tlog.ProveRecord(signed.size, index, l)
		if err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		hash := tlog.RecordHash(record)
		if err := tlog.CheckRecord(proof, signed.size, signed.root, index, hash); err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		hash[0] ^= 1
		if tlog.CheckRecord(proof, signed.size, signed.root, index, hash) == nil {
			return fmt.Errorf("record %d: another record is proven too", index)
		}
	}
	for _, path := range arguments[2:] {
		old, err := openCheckpoint(path, verifier)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		proof, err := tlog.ProveTree(signed.size, old.size, l)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := tlog.CheckTree(proof, signed.size, signed.root, old.size, old.root); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		old.root[0] ^= 1
		if tlog.CheckTree(proof, signed.size, signed.root, old.size, old.root) == nil {
			return fmt.Errorf("%s: another tree is proven too", path)
		}
	}
	fmt.Printf("%d records included, consistent with %d older checkpoints\n", signed.size, len(arguments)-2)
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
