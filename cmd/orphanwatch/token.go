package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

func (c *cli) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke tokens of the HTTP API",
		Long: `Make, list and revoke the static tokens of the HTTP API. They are in http.tokens_file,
as digests with scopes and expiry; a daemon that runs takes a change over within a
second of the next request. Several tokens may be in force at once: to replace one,
make the new one, hand it out, revoke the old one.

Scopes: read (look), cleanup (clean, initialize), purge (empty queues), admin (pause,
resume, restore, --force; has all the others too).`,
		Example: `  orphanwatch token create --name ci --scopes read,cleanup --expires 90d
  orphanwatch token list
  orphanwatch token revoke ci`,
	}
	file := ""
	cmd.PersistentFlags().StringVar(&file, "tokens-file", "", "the file (default: http.tokens_file of the configuration)")
	cmd.AddCommand(c.tokenCreateCommand(&file), c.tokenListCommand(&file), c.tokenRevokeCommand(&file))
	return cmd
}

// tokens is the tokens file, and where changes of it are written down. With a file given no
// configuration is needed: tokens may be made where the daemon is not.
func (c *cli) tokens(file string) (string, *wiring.Audit, error) {
	config, err := c.load()
	switch {
	case err != nil && file == "":
		return "", nil, err
	case err != nil:
		config = wiring.Default()
	case file == "":
		file = config.HTTP.TokensFile
	}
	if file == "" {
		return "", nil, usageError{errors.New("no tokens file: give --tokens-file FILE, or set http.tokens_file (ORPHANWATCH_HTTP_TOKENS_FILE)")}
	}
	audit, err := wiring.OpenAudit(config, nil)
	return file, audit, err
}

// tokenCreated is what token create prints as JSON.
type tokenCreated struct {
	wiring.Token
	Text string `json:"token"`
	File string `json:"tokens_file"`
}

func (c *cli) tokenCreateCommand(file *string) *cobra.Command {
	var name, expires string
	var scopes []string
	cmd := &cobra.Command{
		Use:   "create --name NAME --scopes SCOPE[,SCOPE...]",
		Short: "Make a token, and print it once",
		Long: `Make a token: its digest goes into the tokens file (made with mode 600 if it is not
there), the token itself alone on stdout. It cannot be shown again.`,
		Example: `  orphanwatch token create --name ci --scopes read,cleanup
  orphanwatch token create --name celery --scopes read --expires 90d --tokens-file /etc/orphanwatch/tokens > celery.token`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lifetime, err := parseLifetime(expires)
			if err != nil {
				return usageError{err}
			}
			if name == "" {
				return usageError{errors.New("--name is needed: who holds the token, such as ci\n  see: orphanwatch token create --help")}
			}
			path, audit, err := c.tokens(*file)
			if err != nil {
				return err
			}
			var made tokenCreated
			entry := wiring.AuditEntry{Action: "token-create", Filter: map[string]any{"name": name, "scopes": scopes, "expires": expires, "tokens_file": path}}
			err = written(cmd.Context(), audit, entry, func() (any, error) {
				made.Token, made.Text, err = wiring.CreateToken(cmd.Context(), path, name, scopes, lifetime)
				return map[string]string{"id": made.ID}, err
			})
			if made.Text == "" {
				return usageErrorOf(err)
			}
			made.File = path
			return errors.Join(err, c.printToken(made))
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "who holds it; appears in the audit log")
	cmd.Flags().StringSliceVar(&scopes, "scopes", []string{"read"}, "what it may do: read, cleanup, purge, admin")
	cmd.Flags().StringVar(&expires, "expires", "", "for how long it is good, such as 90d or 12h (default: for ever)")
	_ = cmd.RegisterFlagCompletionFunc("scopes", cobra.FixedCompletions([]string{"read", "cleanup", "purge", "admin"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	return cmd
}

func (c *cli) printToken(made tokenCreated) error {
	var err error
	if c.output == outputJSON {
		err = c.printJSON(made)
	} else {
		_, err = fmt.Fprintln(c.out, made.Text)
	}
	if err != nil {
		return fmt.Errorf("write: %w\n  fix: the token is lost; orphanwatch token revoke %s", err, made.ID)
	}
	c.progress("token %s of %s: %s; expires: %s; in %s. It is not shown again.", made.ID, made.Name, scopesOf(made.Token), expiryOf(made.Token), made.File)
	return nil
}

func (c *cli) tokenListCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tokens, without their secrets",
		Long:  `List the tokens of the file: id, name, scopes, when they were made and when they expire.`,
		Example: `  orphanwatch token list
  orphanwatch token list --tokens-file /etc/orphanwatch/tokens -o json`,
		RunE: func(*cobra.Command, []string) error {
			path, _, err := c.tokens(*file)
			if err != nil {
				return err
			}
			tokens, err := wiring.ListTokens(path)
			if err != nil {
				return err
			}
			if c.output == outputJSON {
				return c.printJSON(append([]wiring.Token{}, tokens...))
			}
			var rows []table.Row
			for _, t := range tokens {
				rows = append(rows, table.Row{t.ID, t.Name, scopesOf(t), clock(t.Created), expiryOf(t)})
			}
			return c.printTable(table.Row{"id", "name", "scopes", "created", "expires"}, rows)
		},
	}
}

func (c *cli) tokenRevokeCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID|NAME",
		Short: "Revoke a token",
		Long: `Revoke a token: its line is taken out of the file. A daemon that runs refuses it from
a second later on. Where several tokens have the name, the id is needed.`,
		Example: `  orphanwatch token revoke ci
  orphanwatch token revoke k3v9x2m1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, audit, err := c.tokens(*file)
			if err != nil {
				return err
			}
			var gone wiring.Token
			entry := wiring.AuditEntry{Action: "token-revoke", Filter: map[string]any{"token": args[0], "tokens_file": path}}
			err = written(cmd.Context(), audit, entry, func() (any, error) {
				gone, err = wiring.RevokeToken(cmd.Context(), path, args[0])
				return map[string]string{"id": gone.ID}, err
			})
			if err != nil {
				return err
			}
			c.progress("token %s of %s is revoked", gone.ID, gone.Name)
			if c.output == outputJSON {
				return c.printJSON(gone)
			}
			return nil
		},
	}
}

// usageErrorOf makes wrong names and scopes errors of usage; others are of the file.
func usageErrorOf(err error) error {
	var bad *wiring.TokenInputError
	if errors.As(err, &bad) {
		return usageError{err}
	}
	return err
}

// parseLifetime reads a duration, in days too; "" is 0, for ever.
func parseLifetime(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok && err != nil {
		var n int
		if n, err = strconv.Atoi(days); err == nil && n <= 36500 {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("--expires is %q, not a duration; write such as 90d or 12h, or leave it out for ever", text)
	}
	return d, nil
}

func scopesOf(t wiring.Token) string {
	names := make([]string, len(t.Scopes))
	for i, s := range t.Scopes {
		names[i] = string(s)
	}
	return strings.Join(names, ",")
}

func expiryOf(t wiring.Token) string {
	switch {
	case t.Expires.IsZero():
		return "never"
	case time.Now().After(t.Expires):
		return "expired " + clock(t.Expires)
	}
	return clock(t.Expires)
}
