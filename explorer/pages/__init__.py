"""What each page of the explorer shows, as a JSON document made of a store; `table.PAGES` lists them."""
