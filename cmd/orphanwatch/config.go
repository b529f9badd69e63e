package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func (c *cli) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check or show the configuration",
		Example: `  orphanwatch config check
  orphanwatch config show`,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "check",
			Short: "Check file and environment, without connecting",
			Long: `Check the file and the environment: every problem at once, each with its fix. Nothing
is connected; doctor checks the stores. Exit code 2 if something is wrong.`,
			Example: `  orphanwatch config check
  orphanwatch --config /etc/orphanwatch.yaml config check`,
			RunE: func(*cobra.Command, []string) error {
				if _, err := c.load(); err != nil {
					return err
				}
				if c.output == outputJSON {
					return c.printJSON(map[string]bool{"ok": true})
				}
				_, err := fmt.Fprintln(c.out, "the configuration is good")
				return err
			},
		},
		&cobra.Command{
			Use:   "show",
			Short: "Show what is in force, without secrets",
			Long:  `Show the whole configuration as it is in force: defaults, file and environment, as YAML or JSON. Secrets are shown as ***.`,
			Example: `  orphanwatch config show
  orphanwatch config show -o json | jq .policy`,
			RunE: func(*cobra.Command, []string) error {
				config, err := c.load()
				if err != nil {
					return err
				}
				body, err := yaml.Marshal(config)
				if err != nil {
					return fmt.Errorf("encode: %w", err)
				}
				if c.output == outputJSON {
					// By way of the YAML, so that both have the same names and spellings.
					var all map[string]any
					if err := yaml.Unmarshal(body, &all); err != nil {
						return fmt.Errorf("encode: %w", err)
					}
					return c.printJSON(all)
				}
				_, err = c.out.Write(body)
				return err
			},
		},
	)
	return cmd
}
