"""The daemon of edgecdn: finds peers, shares what is here, serves local tools. To come."""
