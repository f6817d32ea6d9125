-- Every row is read, and every page with its checksum.
with moved as (
  select id,
    1000 - coalesce((select sum(amount) from ledger where source = id), 0)
      + coalesce((select sum(amount) from ledger where target = id), 0) as expected
  from account
)
select json_build_object(
  'count', (select count(*) from ledger),
  'first', (select coalesce(min(n), 0) from ledger),
  'last', (select coalesce(max(n), 0) from ledger),
  'digest', (select md5(coalesce(string_agg(
      concat_ws(':', n, source, target, amount, note), ',' order by n), '')) from ledger),
  'balances_wrong',
    (select count(*) from moved join account using (id) where balance <> expected),
  'money', (select sum(balance) from account),
  'version', current_setting('server_version')
);
