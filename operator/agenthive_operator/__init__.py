"""AgentHive operator: turns AgentHive and Agent resources into running fleets."""
