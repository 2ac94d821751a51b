// A small witness by C2SP tlog-witness, for the tests of `cloister audit witness`: it remembers the last
// checkpoint that it saw of one log, checks with Go's own library that the next extends it, and cosigns.
//
// Usage: main VKEY-FILE. Prints its address and its own verifier key, a line each.
package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const name = "witness.example/tests"
const cosignature = 4

type witness struct {
	mutex    sync.Mutex
	verifier note.Verifier
	key      ed25519.PrivateKey
	size     int64
	root     tlog.Hash
}

func keyID(public []byte) []byte {
	id := sha256.Sum256(append([]byte(name+"\n"), append([]byte{cosignature}, public...)...))
	return id[:4]
}

// add answers a request with a status and a text.
func (w *witness) add(body string) (int, string) {
	head, signed, found := strings.Cut(body, "\n\n")
	lines := strings.Split(head, "\n")
	isOld, oldText := strings.HasPrefix(lines[0], "old "), strings.TrimPrefix(lines[0], "old ")
	old, err := strconv.ParseInt(oldText, 10, 64)
	if !found || !isOld || err != nil || len(lines) > 64 {
		return 400, "malformed\n"
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(hash) != tlog.HashSize {
			return 400, "malformed\n"
		}
		proof = append(proof, tlog.Hash(*(*[tlog.HashSize]byte)(hash)))
	}
	opened, err := note.Open([]byte(signed), note.VerifierList(w.verifier))
	if err != nil {
		return 403, "not signed by the log\n"
	}
	text := strings.Split(opened.Text, "\n")
	if len(text) != 4 || text[0] != w.verifier.Name() {
		return 404, "another log\n"
	}
	size, err := strconv.ParseInt(text[1], 10, 64)
	root, err2 := base64.StdEncoding.DecodeString(text[2])
	if err != nil || err2 != nil || len(root) != tlog.HashSize || old > size {
		return 400, "malformed\n"
	}
	hash := tlog.Hash(*(*[tlog.HashSize]byte)(root))
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if old != w.size {
		return 409, fmt.Sprintf("%d\n", w.size)
	}
	switch {
	case old == size && old > 0 && hash != w.root:
		return 409, fmt.Sprintf("%d\n", w.size)
	case old > 0 && old < size:
		if err := tlog.CheckTree(proof, size, hash, old, w.root); err != nil {
			return 422, "not an extension\n"
		}
	case len(proof) > 0:
		return 422, "a proof of nothing\n"
	}
	w.size, w.root = size, hash
	now := uint64(time.Now().Unix())
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", now, opened.Text)
	signature := keyID(w.key.Public().(ed25519.PublicKey))
	signature = binary.BigEndian.AppendUint64(signature, now)
	signature = append(signature, ed25519.Sign(w.key, []byte(message))...)
	return 200, fmt.Sprintf("— %s %s\n", name, base64.StdEncoding.EncodeToString(signature))
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: main VKEY-FILE")
	}
	vkey, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return err
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	w := &witness{verifier: verifier, key: key}
	http.HandleFunc("/cloister/add-checkpoint", func(out http.ResponseWriter, in *http.Request) {
		body, err := io.ReadAll(io.LimitReader(in.Body, 1<<16))
		if err != nil || in.Method != http.MethodPost {
			out.WriteHeader(400)
			return
		}
		status, text := w.add(string(body))
		out.WriteHeader(status)
		fmt.Fprint(out, text)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s/cloister\n", listener.Addr())
	own := append([]byte{cosignature}, public...)
	fmt.Printf("%s+%x+%s\n", name, keyID(public), base64.StdEncoding.EncodeToString(own))
	return http.Serve(listener, nil)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
