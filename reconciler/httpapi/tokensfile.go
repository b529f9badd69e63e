package httpapi

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// ReadTokens reads a tokens file. It must be one that others cannot write: who writes
// it lets himself in.
func ReadTokens(file string) ([]Token, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("tokens file: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("tokens file: %w", err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("tokens file %s: is not a file", file)
	case info.Mode().Perm()&0o022 != 0:
		return nil, reconciler.Hint(fmt.Errorf("tokens file %s: can be written by others than its owner (mode %04o)", file, info.Mode().Perm()), "chmod 600 "+file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTokensFile+1))
	if err == nil && len(text) > maxTokensFile {
		err = errors.New("is larger than 1 MiB")
	}
	if err != nil {
		return nil, fmt.Errorf("tokens file %s: %w", file, err)
	}
	tokens, err := ParseTokens(text)
	if err != nil {
		return nil, reconciler.Hint(fmt.Errorf("tokens file %s: %w", file, err), "mend the line, or remove it; orphanwatch token create writes lines that are good")
	}
	return tokens, nil
}
